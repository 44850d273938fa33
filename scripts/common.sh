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

# value_of NAME WORDS: the value that these words give the flag --NAME, the last one of several; - and _ are alike.
value_of() {
    local wanted="__$1" word name before="" found=""
    shift
    for word in "$@"; do
        name="${word%%=*}"
        [[ "${before//-/_}" == "$wanted" ]] && found="$word"
        [[ "$word" == *=* && "${name//-/_}" == "$wanted" ]] && found="${word#*=}"
        before="$word"
    done
    printf '%s' "$found"
}

# share_of_updates N DEFAULT WORDS: an N-th of the updates that the words ask for, or of DEFAULT.
share_of_updates() {
    local updates
    updates="$(value_of num_training_steps "${@:3}")"
    [[ "$updates" =~ ^[0-9]+$ ]] || updates="$2"
    printf '%s' $((10#$updates / $1))
}

processes() {
    local count="${NPROC:-$(gpus || true)}"
    [[ -z "$count" || "$count" == 0 ]] && count=1
    if [[ ! "$count" =~ ^[1-9][0-9]*$ ]]; then
        echo "NPROC=$count: give a number of processes" >&2
        exit 2
    fi
    printf '%s' "$count"
}

# refuse_uneven PROCESSES TOTAL: ends where so many processes cannot share an update of TOTAL rows, with those that can.
refuse_uneven() {
    local processes="$1" total="$2" fitting="" count
    ((total % processes == 0)) && return
    for ((count = 1; count <= total && count <= 2 * processes + 2; count++)); do
        ((total % count == 0)) && fitting+="${fitting:+, }$count"
    done
    echo "NPROC=$processes: an update of $total rows cannot be shared evenly by $processes processes; take $fitting," \
        "or another --total_batch_size" >&2
    return 2
}

# micro_batch ROWS PROCESSES WORDS: the most rows of 256 tokens at once for each process, up to ROWS, with which the
# processes share an update evenly. Rows that are twice as long come half as many; what the words say is left alone.
micro_batch() {
    local rows="$1" processes="$2" total length
    shift 2
    [[ -n "$(value_of batch_size "$@")$(value_of gradient_accumulation "$@")" ]] && return
    total="$(value_of total_batch_size "$@")" length="$(value_of max_length "$@")"
    [[ "$total" =~ ^[1-9][0-9]*$ ]] || total=512
    [[ "$length" =~ ^[1-9][0-9]*$ ]] && rows=$((rows * 256 / length))
    refuse_uneven "$processes" "$total" || exit 2
    while ((rows > 1 && total % (rows * processes))); do
        ((rows -= 1))
    done
    echo --batch_size $((rows > 1 ? rows : 1))
}

# pretrain SIZE FLAGS: the protocol of the published tables on C4. Rows of 256 tokens, 512 rows per update, cosine to a
# tenth, bf16 rounded to nearest, evaluation every 1,000 updates on 10M tokens. Warm-up over a tenth of the updates and
# no weight decay are the defaults. So many rows come at once that AdamW's predicted peak is 13, 29, 40 and 51 GiB.
pretrain() {
    local size="$1" updates rows count batch
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
    count="$(processes)" || exit 2
    batch="$(micro_batch "$rows" "$count" "$@")" || exit 2
    # shellcheck disable=SC2046,SC2086  # no word or two
    distributed "$count" --model_config "configs/llama_$size.json" $batch \
        --total_batch_size 512 --max_length 256 --num_training_steps "$updates" --scheduler cosine \
        --dtype bfloat16 --weight_rounding nearest --eval_every 1000 --eval_tokens 10M "$@"
}

distributed() {
    start "$PYTHON" -m peft_pretraining.launch --standalone --nproc_per_node "$1" torchrun_main.py "${@:2}"
}

# seven_billion FLAGS: LLaMA 7B on one GPU, 150,000 updates of 512 rows.
seven_billion() {
    start "$PYTHON" torchrun_main.py --single_gpu --model_config configs/llama_7b.json \
        --total_batch_size 512 --max_length 256 --num_training_steps 150000 \
        --dtype bfloat16 --weight_rounding nearest --eval_every 1000 --eval_tokens 10M "$@"
}
