#!/usr/bin/env bash
# AdamW, full rank, LLaMA 7B on one GPU: predicted peak 39.7 GiB, with --state_dtype int8 27.3 GiB. The rate is of the
# grid of GaLore's paper and this project's choice: search it before comparing.
# Each parameter is updated inside the backward pass, which for this method takes a single micro-batch: an update is 16
# rows, not 512.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer adamw --lr 5e-4 --per_layer --state_dtype bfloat16 --grad_clipping 1.0 --batch_size 16 \
    --total_batch_size 16 --activation_checkpointing "$@"
