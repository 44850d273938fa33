#!/usr/bin/env bash
# Online Subspace Descent, LLaMA 350M: settings of the authors' 60M run with the rank of GaLore's table. The paper
# searched 0.01, 0.005 and 0.001 and trained 10,000 updates at every size.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer galore_adamw --proj_type continuous --lr 0.01 --galore_scale 0.25 --rank 256 \
    --update_proj_gap 200 "$@"
