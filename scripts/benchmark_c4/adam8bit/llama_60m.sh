#!/usr/bin/env bash
# 8-bit Adam, LLaMA 60M: the rate of the AdamW baseline; none is published for 8 bits at this size.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer adam8bit --lr 5e-3 --grad_clipping 1.0 "$@"
