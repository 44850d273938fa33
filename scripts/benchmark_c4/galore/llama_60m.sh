#!/usr/bin/env bash
# GaLore, LLaMA 60M (arXiv 2403.03507, Table 2): rank 128, a new basis every 200 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer galore_adamw --lr 0.01 --galore_scale 0.25 --rank 128 --update_proj_gap 200 "$@"
