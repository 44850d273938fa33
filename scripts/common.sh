#!/usr/bin/env bash
# Sourced by the published runs: what they share, and how they are started.
#
#   NPROC=8                   processes on this machine (default: the number of GPUs, or 1)
#   DRY_RUN=1                 print the command instead of running it
#   PYTHON=...                interpreter (default: .venv/bin/python if it is there, else python)
#
# Arguments of a script are further flags of torchrun_main.py and win over its own:
#
#   DRY_RUN=1 bash scripts/benchmark_c4/adamw_sn/llama_60m.sh --dataset builtin --batch_size 32
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

# Runs the words given, or prints them as they would be typed.
start() {
    if [[ "${DRY_RUN:-0}" == 1 ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        exec "$@"
    fi
}

gpus() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c '^GPU'
}

# pretrain SIZE FLAGS: the protocol of the published tables on C4. Rows of 256 tokens, 512 rows an update, cosine
# to a tenth, bf16, evaluation every 1,000 updates on 10M tokens. Warm-up over a tenth of the updates and no weight decay
# are the defaults.
pretrain() {
    local size="$1" updates rows
    shift
    case "$size" in
        60m) updates=10000 rows=256 ;;
        130m) updates=20000 rows=256 ;;
        350m) updates=60000 rows=128 ;;
        1b) updates=100000 rows=64 ;;
        *)
            echo "no published protocol for llama_$size" >&2
            exit 2
            ;;
    esac
    distributed --model_config "configs/llama_$size.json" \
        --batch_size "$rows" --total_batch_size 512 --max_length 256 \
        --num_training_steps "$updates" --scheduler cosine \
        --dtype bfloat16 --eval_every 1000 --eval_tokens 10M "$@"
}

distributed() {
    local processes="${NPROC:-$(gpus || true)}"
    [[ -z "$processes" || "$processes" == 0 ]] && processes=1
    start "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$processes" torchrun_main.py "$@"
}

# seven_billion FLAGS: LLaMA 7B on one GPU, 150,000 updates of 512 rows.
seven_billion() {
    start "$PYTHON" torchrun_main.py --single_gpu --model_config configs/llama_7b.json \
        --total_batch_size 512 --max_length 256 --num_training_steps 150000 \
        --dtype bfloat16 --eval_every 1000 --eval_tokens 10M "$@"
}
