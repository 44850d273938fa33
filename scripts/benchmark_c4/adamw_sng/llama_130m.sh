#!/usr/bin/env bash
# AdamW-SN general, LLaMA 130M: the authors' rule of thumb, subsets of half the hidden size and ten times AdamW's
# rate.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer adamw_sng --subset_size 384 --lr 5e-2 --grad_clipping 1.0 "$@"
