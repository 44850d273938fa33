#!/usr/bin/env bash
# GaLore, LLaMA 350M (arXiv 2403.03507, Table 2): rank 256, a new basis every 200 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer galore_adamw --lr 0.01 --galore_scale 0.25 --rank 256 --update_proj_gap 200 "$@"
