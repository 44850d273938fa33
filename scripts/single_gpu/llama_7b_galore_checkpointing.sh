#!/usr/bin/env bash
# 8-bit GaLore, LLaMA 7B on one GPU, 16 rows at a time with activation checkpointing (github.com/jiaweizzhao/GaLore).
# Predicted peak 26.6 GiB, sums of projected gradients between micro-batches included; 20.4 GiB for updates of 16 rows
# (--total_batch_size 16).
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer galore_adamw8bit_per_layer --lr 0.005 --galore_scale 0.25 --rank 1024 \
    --update_proj_gap 500 --batch_size 16 --activation_checkpointing --grad_clipping 1.0 "$@"
