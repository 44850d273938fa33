#!/usr/bin/env bash
# APOLLO-Mini, LLaMA 60M, as in the authors' script (arXiv 2412.05270): rank 1, one learning rate a matrix, scale 128
# before the limiter.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer apollo_mini --lr 0.01 --scale 128 --update_proj_gap 200 --scale_front "$@"
