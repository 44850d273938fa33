#!/usr/bin/env bash
# Muon, LLaMA 130M, as in the C4 scripts of Conda's authors (arXiv 2509.24218): Moonlight's step, one rate for all
# parameters, AdamW's betas 0.9 and 0.95.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer muon --lr 1e-3 --adjust_lr_fn match_rms_adamw --momentum 0.95 --adamw_beta1 0.9 \
    --adamw_beta2 0.95 "$@"
