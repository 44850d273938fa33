#!/usr/bin/env bash
# LDAdam without error feedback, LLaMA 350M, as in the authors' script (arXiv 2410.16103): rank 256, 55,000 updates, no
# clipping.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer ldadamw --lr 1e-3 --beta1 0.908 --beta2 0.99 --eps 1e-8 --rho 0.908 --rank 256 \
    --no_error_feedback --num_training_steps 55000 "$@"
