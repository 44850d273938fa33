#!/usr/bin/env bash
# Every GPU figure of docs/performance.md in one command; arguments are those of benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec python -m benchmarks.gpu "$@"
