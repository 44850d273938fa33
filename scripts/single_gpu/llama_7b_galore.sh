#!/usr/bin/env bash
# 8-bit GaLore, LLaMA 7B on one GPU, one row at a time (github.com/jiaweizzhao/GaLore, scripts/single_gpu). Predicted
# peak 26.7 GiB, sums of projected gradients between micro-batches included; 20.1 GiB for updates of one row
# (--total_batch_size 1).
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer galore_adamw8bit_per_layer --lr 0.005 --galore_scale 0.25 --rank 1024 \
    --update_proj_gap 500 --batch_size 1 --grad_clipping 1.0 "$@"
