#!/usr/bin/env bash
# AdamW, full rank, LLaMA 350M: the baseline rate of the subset norm paper (arXiv 2411.07120). GaLore's table took the
# best of 0.01 to 0.0001 instead.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer adamw --lr 5e-3 --grad_clipping 1.0 "$@"
