#!/usr/bin/env bash
# Online Subspace Descent, LLaMA 60M, as in the authors' README (github.com/kyleliang919/Online-Subspace-Descent).
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer galore_adamw --proj_type continuous --lr 0.01 --galore_scale 0.25 --rank 128 \
    --update_proj_gap 200 "$@"
