#!/usr/bin/env bash
# AdamW-SN, LLaMA 7B on one GPU: predicted peak 28.3 GiB, with --state_dtype int8 21.5 GiB. None is published at this
# size: the rate is the authors' for 60M to 350M, to be searched.
# Each parameter is updated inside the backward pass, which for this method takes a single micro-batch: an update is 16
# rows, not 512.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer adamw_sn --lr 5e-2 --per_layer --state_dtype bfloat16 --grad_clipping 1.0 --batch_size 16 \
    --total_batch_size 16 --activation_checkpointing "$@"
