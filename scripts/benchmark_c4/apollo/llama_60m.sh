#!/usr/bin/env bash
# APOLLO, LLaMA 60M, as in the authors' script (arXiv 2412.05270): random projection to rank 128, drawn anew every 200
# updates, one learning rate a channel.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 60m --optimizer apollo --lr 0.01 --rank 128 --scale 1 --update_proj_gap 200 "$@"
