#!/usr/bin/env bash
# Runs a column of the published tables, every method at one model size, and prints the table.
#
#   bash scripts/reproduce_table.sh 60m
#   METHODS="adamw adamw_sn" bash scripts/reproduce_table.sh 60m --dataset builtin --num_training_steps 500
#
#   SEEDS="0 1 2" SLURM=1 bash scripts/reproduce_table.sh 130m
#
# Further arguments are flags for all of the runs. METHODS chooses among the folders of scripts/benchmark_c4, SEEDS are
# those of each method (default: 0), FOLDER is where the runs go (default: runs/table-SIZE), DRY_RUN=1 prints the commands.
# SLURM=1 gives each run to sbatch instead (options of sbatch: SBATCH_PARTITION and the like in the environment); the
# same line without it prints the table when they are done. What is done is skipped; a run that was stopped goes on.
#
# One protocol holds for the whole table: 512 rows of 256 tokens an update, cosine, a tenth of warm-up, the same updates.
# OWN_PROTOCOL=1 leaves each method that of its paper, whose figures then do not compare. Perplexities carry the bias of
# the published evaluation, to stand beside published ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

size="${1:-}"
if [[ ! -f "scripts/benchmark_c4/adamw/llama_$size.sh" ]]; then
    echo "usage: bash scripts/reproduce_table.sh 60m|130m|350m|1b [flags of torchrun_main.py]" >&2
    exit 2
fi
shift
read -ra methods <<<"${METHODS:-$(ls scripts/benchmark_c4 | tr '\n' ' ')}"
folder="${FOLDER:-runs/table-$size}"
python="${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)}"

read -ra seeds <<<"${SEEDS:-0}"
declare -A lengths=([60m]=10000 [130m]=20000 [350m]=60000 [1b]=100000)
updates="${lengths[$size]}" words=("$@")
for index in "${!words[@]}"; do
    [[ "${words[index]//-/_}" == __num_training_steps ]] && updates="${words[index + 1]:-$updates}"
    [[ "${words[index]//-/_}" == __num_training_steps=* ]] && updates="${words[index]#*=}"
done
protocol=(--total_batch_size 512 --max_length 256 --scheduler cosine --num_training_steps "$updates")
[[ "$updates" =~ ^[0-9]+$ ]] && protocol+=(--warmup_steps $((updates / 10)))
[[ "${OWN_PROTOCOL:-0}" == 1 ]] && protocol=()

for method in "${methods[@]}"; do
    if [[ ! -f "scripts/benchmark_c4/$method/llama_$size.sh" ]]; then
        echo "no script scripts/benchmark_c4/$method/llama_$size.sh: METHODS may name" \
            "$(ls scripts/benchmark_c4 | tr '\n' ' ')" >&2
        exit 2
    fi
done

# time_left DONE ALL SECONDS: what is left at the speed so far.
time_left() {
    local seconds=$((($2 - $1) * $3 / $1))
    printf '%d of %d runs done, about %d:%02d hours left at this speed\n' "$1" "$2" $((seconds / 3600)) \
        $((seconds % 3600 / 60))
}

failed=() todo=()
for seed in "${seeds[@]}"; do
    for method in "${methods[@]}"; do
        run="$folder/$method"
        ((${#seeds[@]} > 1)) && run+="/seed_$seed"
        [[ -f "$run/summary.json" ]] || todo+=("$method $seed $run")
    done
done
done_now=0 begun=$SECONDS
for each in "${todo[@]}"; do
    read -r method seed run <<<"$each"
    command=(bash)
    [[ "${SLURM:-0}" == 1 ]] && command=(sbatch "--job-name=$size-$method-$seed" scripts/slurm/pretrain.sh --)
    command+=("scripts/benchmark_c4/$method/llama_$size.sh" --evaluation published --seed "$seed")
    command+=("${protocol[@]}" --save_dir "$run" --continue_from auto "$@")
    if [[ "${DRY_RUN:-0}" == 1 && "${SLURM:-0}" == 1 ]]; then
        printf '%q ' "${command[@]}"
        printf '\n'
        continue
    fi
    if [[ "${DRY_RUN:-0}" != 1 ]]; then
        mkdir -p "$run"
        printf '{"method": "%s"}\n' "$method" >"$run/sweep.json"
    fi
    "${command[@]}" || failed+=("$method")
    done_now=$((done_now + 1))
    [[ "${DRY_RUN:-0}" == 1 || "${SLURM:-0}" == 1 ]] || time_left "$done_now" "${#todo[@]}" $((SECONDS - begun)) >&2
done

[[ "${DRY_RUN:-0}" == 1 || "${SLURM:-0}" == 1 ]] && exit 0
# What failed is named even where no run is left that a report could be made of.
status=0
"$python" -m peft_pretraining.report "$folder" -o "$folder/report.html" --title "LLaMA ${size^^}" --table || status=$?
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
exit "$status"
