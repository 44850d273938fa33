#!/usr/bin/env bash
# AdamW-SN, LLaMA 60M, as in the authors' README (github.com/timmytonga/sn-sm): one rate for 60M, 130M and 350M.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer adamw_sn --lr 5e-2 --grad_clipping 1.0 "$@"
