#!/usr/bin/env bash
# RMSProp-SN, LLaMA 1B: lr and clipping of the authors' 60M run; they print no rate for 1B.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer adamw_sn --beta1 0 --lr 0.01 --grad_clipping 1.0 "$@"
