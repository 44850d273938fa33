#!/usr/bin/env bash
# SGD-Boost, later SGD-SaI (arXiv 2412.11768), LLaMA 7B on one GPU, updated inside the backward pass: predicted peak
# 29.3 GiB (not with --state_dtype int8, which keeps the gradients of all micro-batches). No setting for LLaMA on C4 is
# published: the rate is a start for a search.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer sgd_boost --momentum 0.9 --lr 1e-3 --per_layer --state_dtype bfloat16 --batch_size 16 \
    --activation_checkpointing "$@"
