#!/usr/bin/env bash
# AdamW-SNSM, LLaMA 130M: the authors' settings for 60M (github.com/timmytonga/sn-sm), the only published ones, with
# rank 192, a quarter of the width.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer adamw_snsm --lr 0.05 --rank 192 --update_proj_gap 100 --grad_clipping 1.0 "$@"
