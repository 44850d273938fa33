#!/usr/bin/env bash
# RMSProp-SN (AdamW-SN without momentum), LLaMA 7B on one GPU: predicted peak 15.2 GiB. None is published at this size:
# the rate is the authors' for 60M, to be searched.
# Each parameter is updated inside the backward pass, which for this method takes a single micro-batch: an update is 16
# rows, not 512.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer adamw_sn --beta1 0 --lr 0.01 --per_layer --grad_clipping 1.0 --batch_size 16 \
    --total_batch_size 16 --activation_checkpointing "$@"
