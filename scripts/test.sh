#!/usr/bin/env bash
# Installs what the tests need, then checks style, types and behaviour. Arguments go to pytest:
#
#   bash scripts/test.sh                    everything but the tests marked slow
#   bash scripts/test.sh -m slow            only the slow ones
#   bash scripts/test.sh tests/optimizers   one folder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh dev

# One thread a process: two workers of pytest share the cores, and results do not depend on the thread count.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false WANDB_MODE=disabled

.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" -m "not slow and not gpu" "$@"
