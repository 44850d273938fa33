#!/usr/bin/env bash
# LDAdam with error feedback, LLaMA 1B: settings of the authors' 350M script, the only published one, for the updates
# of the common protocol.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 1b --optimizer ldadamw --lr 1e-3 --beta1 0.908 --beta2 0.99 --eps 1e-8 --rho 0.908 --rank 8 "$@"
