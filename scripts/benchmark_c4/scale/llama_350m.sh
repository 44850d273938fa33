#!/usr/bin/env bash
# SCALE, LLaMA 350M, as in the authors' script (arXiv 2506.16659).
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer scale --lr 1e-3 --momentum 0.9 "$@"
