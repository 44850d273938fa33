#!/usr/bin/env bash
# Adam-mini, LLaMA 7B on one GPU: predicted peak 27.1 GiB, with --state_dtype int8 20.9 GiB. Betas, decay and clipping are
# those of the authors' scaling runs (arXiv 2406.16793), the rate that of their 1B run, to be searched.
# Each parameter is updated inside the backward pass, which for this method takes a single micro-batch: an update is 16
# rows, not 512.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer adam_mini --lr 2e-4 --beta1 0.9 --beta2 0.95 --weight_decay 0.1 --per_layer \
    --state_dtype bfloat16 --grad_clipping 1.0 --batch_size 16 --total_batch_size 16 --activation_checkpointing "$@"
