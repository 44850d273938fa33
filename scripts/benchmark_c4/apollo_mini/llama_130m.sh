#!/usr/bin/env bash
# APOLLO-Mini, LLaMA 130M, as in the authors' script (arXiv 2412.05270): rank 1, one learning rate a matrix, scale 192
# before the limiter.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer apollo_mini --lr 0.01 --scale 192 --update_proj_gap 200 --scale_front "$@"
