#!/usr/bin/env bash
# Fira, LLaMA 60M, as in the authors' script (arXiv 2410.01623): rank 128, alpha 0.25, a new basis every 200 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer fira --lr 0.01 --rank 128 --alpha 0.25 --update_proj_gap 200 "$@"
