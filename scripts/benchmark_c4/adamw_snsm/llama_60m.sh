#!/usr/bin/env bash
# AdamW-SNSM, LLaMA 60M, as in the authors' README (github.com/timmytonga/sn-sm): rank 128, a new basis every 100
# updates, a tenth of the updates of warm-up.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer adamw_snsm --lr 0.05 --rank 128 --update_proj_gap 100 --grad_clipping 1.0 "$@"
