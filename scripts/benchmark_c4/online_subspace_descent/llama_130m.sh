#!/usr/bin/env bash
# Online Subspace Descent, LLaMA 130M: 10,000 updates as the paper trains every size (arXiv 2408.12857). It has no 130M:
# the settings are those of the authors' 60M run with the rank of GaLore's table.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 130m --optimizer galore_adamw --proj_type continuous --lr 0.01 --galore_scale 0.25 --rank 256 \
    --update_proj_gap 200 --num_training_steps 10000 "$@"
