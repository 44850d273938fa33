#!/usr/bin/env bash
# Online Subspace Descent with 8-bit states, LLaMA 7B on one GPU, as in the authors' README
# (github.com/kyleliang919/Online-Subspace-Descent). Predicted peak 28.5 GiB.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

seven_billion --optimizer galore_adamw8bit_per_layer --proj_type continuous_adam8bit --lr 0.005 \
    --galore_scale 0.25 --rank 1024 --update_proj_gap 500 --batch_size 16 --activation_checkpointing \
    --grad_clipping 1.0 "$@"
