#!/usr/bin/env bash
# SCALE, LLaMA 130M, as in the authors' script (arXiv 2506.16659).
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer scale --lr 1e-3 --momentum 0.9 "$@"
