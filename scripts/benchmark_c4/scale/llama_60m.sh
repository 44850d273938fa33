#!/usr/bin/env bash
# SCALE, LLaMA 60M, as in the authors' script (arXiv 2506.16659), which trains for 11,000 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer scale --lr 1e-3 --momentum 0.9 --num_training_steps 11000 "$@"
