#!/usr/bin/env bash
# RMSProp-SN (AdamW-SN without momentum), LLaMA 350M: settings of the authors' 60M run, the only one they print.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer adamw_sn --beta1 0 --lr 0.01 --grad_clipping 1.0 "$@"
