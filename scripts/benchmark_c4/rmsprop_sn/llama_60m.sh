#!/usr/bin/env bash
# RMSProp-SN (AdamW-SN without momentum), LLaMA 60M, as in the authors' README (github.com/timmytonga/sn-sm).
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer adamw_sn --beta1 0 --lr 0.01 --grad_clipping 1.0 "$@"
