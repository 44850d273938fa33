#!/usr/bin/env bash
# Every GPU figure of docs/performance.md in one command, within the minutes given (default: 8).
#
#   bash scripts/gpu_benchmarks.sh
#   bash scripts/gpu_benchmarks.sh --parts training --minutes 4
#
# Arguments are those of benchmarks/gpu.py. PYTHON names the interpreter, DRY_RUN=1 prints the command. Not among them:
# python -m benchmarks.memory_gpu, which trains 7B under a hard cap on memory for as long as that takes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start "$PYTHON" -m benchmarks.gpu "$@"
