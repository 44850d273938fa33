#!/usr/bin/env bash
# SGD-Boost, later SGD-SaI (arXiv 2412.11768), LLaMA 130M. No setting for LLaMA on C4 is published: momentum 0.9 is
# the paper's, the rate is a start for a search.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer sgd_boost --momentum 0.9 --lr 1e-3 "$@"
