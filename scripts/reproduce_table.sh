#!/usr/bin/env bash
# Runs a column of the published tables, every method at one model size, and prints the table.
#
#   bash scripts/reproduce_table.sh 60m
#   METHODS="adamw adamw_sn" bash scripts/reproduce_table.sh 60m --dataset builtin --num_training_steps 500
#
# Further arguments are flags for all of the runs. METHODS chooses among the folders of scripts/benchmark_c4, FOLDER is
# where the runs go (default: runs/table-SIZE), DRY_RUN=1 prints the commands. What is done is skipped; a run that was
# stopped goes on. Perplexities carry the bias of the published evaluation, to stand beside published ones.
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

failed=()
for method in "${methods[@]}"; do
    script="scripts/benchmark_c4/$method/llama_$size.sh" run="$folder/$method"
    if [[ ! -f "$script" ]]; then
        echo "no script $script: METHODS may name $(ls scripts/benchmark_c4 | tr '\n' ' ')" >&2
        exit 2
    fi
    [[ -f "$run/summary.json" ]] && continue
    if [[ "${DRY_RUN:-0}" != 1 ]]; then
        mkdir -p "$run"
        printf '{"method": "%s"}\n' "$method" >"$run/sweep.json"
    fi
    bash "$script" --evaluation published --save_dir "$run" --continue_from auto "$@" || failed+=("$method")
done

[[ "${DRY_RUN:-0}" == 1 ]] && exit 0
# What failed is named even where no run is left that a report could be made of.
status=0
"$python" -m peft_pretraining.report "$folder" -o "$folder/report.html" --title "LLaMA ${size^^}" --table || status=$?
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
exit "$status"
