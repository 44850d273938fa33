#!/usr/bin/env bash
# SOAP, LLaMA 350M, as in the C4 scripts of Conda's authors (arXiv 2509.24218): on all parameters, betas 0.9 and 0.99,
# bases every 10 updates.
source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

pretrain 350m --optimizer soap --lr 1e-3 --beta1 0.9 --beta2 0.99 --precondition_frequency 10 "$@"
