#!/usr/bin/env bash
# SCALE, LLaMA 1B, as in the authors' script (arXiv 2506.16659): AdamW on norms at a rate of its own.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer scale --lr 2e-4 --adam_lr 1e-3 --momentum 0.9 "$@"
