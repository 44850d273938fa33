#!/usr/bin/env bash
# Adam-mini, LLaMA 1B, by the protocol of its authors' scaling runs (arXiv 2406.16793): rows of 512 tokens, 256 rows
# an update, betas 0.9 and 0.95, weight decay 0.1, warm-up over a hundredth, linear decay to 0. 200,000 updates at
# 2e-4, as the authors' 1B run.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer adam_mini --lr 2e-4 --beta1 0.9 --beta2 0.95 --weight_decay 0.1 --grad_clipping 1.0 \
    --max_length 512 --total_batch_size 256 --num_training_steps 200000 --scheduler linear \
    --warmup_steps "$(share_of_updates 100 200000 "$@")" "$@"
