#!/usr/bin/env bash
# Dion2 (arXiv 2512.16928), LLaMA 1B. No setting for LLaMA on C4 is published: rate, decay and fraction are those of
# the authors' 160M configuration, a start for a search.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer dion2 --lr 0.02 --fraction 0.5 --weight_decay 0.01 "$@"
