#!/usr/bin/env bash
# 8-bit Adam, LLaMA 1B: the rate of this project's AdamW run; none is published. Search it before comparing.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer adam8bit --lr 5e-4 --grad_clipping 1.0 "$@"
