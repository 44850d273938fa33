#!/usr/bin/env bash
# AdamW-SN general, LLaMA 1B: the authors' rule of thumb, subsets of half the hidden size and ten times AdamW's rate.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer adamw_sng --subset_size 1024 --lr 5e-3 --grad_clipping 1.0 "$@"
