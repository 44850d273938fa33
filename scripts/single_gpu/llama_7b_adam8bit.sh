#!/usr/bin/env bash
# 8-bit Adam, LLaMA 7B, the baseline of GaLore's 7B table: predicted peak 39.8 GiB. Its rate is not printed: 5e-4 is of
# the paper's grid for full-rank Adam and this project's choice.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer adam8bit --lr 5e-4 --batch_size 16 --activation_checkpointing --grad_clipping 1.0 "$@"
