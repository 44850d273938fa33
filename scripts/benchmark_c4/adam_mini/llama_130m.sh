#!/usr/bin/env bash
# Adam-mini, LLaMA 130M, by the protocol of its authors' scaling runs (arXiv 2406.16793): rows of 512 tokens, 256 rows
# an update, betas 0.9 and 0.95, weight decay 0.1, warm-up over a hundredth, linear decay to 0. The updates keep the
# authors' 26 tokens a parameter.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer adam_mini --lr 6e-4 --beta1 0.9 --beta2 0.95 --weight_decay 0.1 --grad_clipping 1.0 \
    --max_length 512 --total_batch_size 256 --num_training_steps 26800 --scheduler linear \
    --warmup_steps "$(share_of_updates 100 26800 "$@")" "$@"
