#!/usr/bin/env bash
# Online Subspace Descent with 8-bit AdamW, LLaMA 350M, as in the paper's Table 1 (arXiv 2408.12857): rank 512, 10,000
# updates, clipping at 1.0. Its figure is training perplexity over the last ten updates. The rate is the first of those
# it searched (0.01, 0.005, 0.001), scale and gap are those of the authors' 60M run.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer galore_adamw8bit --proj_type continuous --lr 0.01 --galore_scale 0.25 --rank 512 \
    --update_proj_gap 200 --grad_clipping 1.0 --num_training_steps 10000 "$@"
