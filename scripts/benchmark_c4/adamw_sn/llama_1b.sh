#!/usr/bin/env bash
# AdamW-SN, LLaMA 1B: lr and clipping of the authors' 60M to 350M runs; they print no rate for 1B.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer adamw_sn --lr 5e-2 --grad_clipping 1.0 "$@"
