#!/usr/bin/env bash
# LDAdam with error feedback, LLaMA 7B on one GPU, updated inside the backward pass: predicted peak 29.0 GiB
# (not with --state_dtype int8, which keeps the gradients of all micro-batches). Settings of the authors' 350M script (arXiv 2410.16103), the only published one.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer ldadamw --lr 1e-3 --beta1 0.908 --beta2 0.99 --eps 1e-8 --rho 0.908 --rank 8 --per_layer \
    --state_dtype bfloat16 --batch_size 16 --activation_checkpointing "$@"
