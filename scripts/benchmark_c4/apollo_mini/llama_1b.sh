#!/usr/bin/env bash
# APOLLO-Mini, LLaMA 1B, as in the authors' script (arXiv 2412.05270): rank 1, one learning rate a matrix, scale 128.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer apollo_mini --lr 0.01 --scale 128 --update_proj_gap 200 "$@"
