#!/usr/bin/env bash
# APOLLO, LLaMA 130M, as in the authors' script (arXiv 2412.05270): random projection to rank 192, drawn anew every 200
# updates, one learning rate a channel.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer apollo --lr 0.01 --rank 192 --scale 1 --update_proj_gap 200 "$@"
