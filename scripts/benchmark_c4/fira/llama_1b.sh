#!/usr/bin/env bash
# Fira, LLaMA 1B, as in the authors' script (arXiv 2410.01623): rank 512, alpha 0.0625, a new basis every 200 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer fira --lr 0.01 --rank 512 --alpha 0.0625 --update_proj_gap 200 "$@"
