#!/usr/bin/env bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# What many clusters ask for as well: take one # away and fill it in, or give it to sbatch.
##SBATCH --partition=NAME
##SBATCH --account=NAME
##SBATCH --mem=0
#
# A run on one or several nodes. It saves before its time runs out, is queued again and goes on:
#
#   sbatch --nodes=2 scripts/slurm/pretrain.sh --name NAME --model_config configs/llama_1b.json ...
#   sbatch scripts/slurm/pretrain.sh -- scripts/benchmark_c4/adamw_sn/llama_60m.sh --name sn60m
#   sbatch --gpus-per-node=1 scripts/slurm/pretrain.sh -- scripts/single_gpu/llama_7b_galore.sh --name galore7b
#
# Arguments are flags of torchrun_main.py, or after -- a published script and its flags. --name or --save_dir is needed:
# the job finds its checkpoints there, on a file system that all nodes share. sbatch may be called from any folder; paths
# are relative to the repository, except slurm-%j.log. PYTHON names the interpreter (default: .venv/bin/python if it is
# there, else python). DRY_RUN=1 prints the command. For many runs: python -m peft_pretraining.sweep FILE --slurm OUT.sh.

# Slurm runs a copy of this file, and knows where the original is.
original="$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null | sed -n 's|^ *Command=\(.*/scripts/slurm/pretrain.sh\).*|\1|p')"
[[ -f "$original" ]] || original="${BASH_SOURCE[0]}"
source "$(dirname "$original")/../common.sh"
set +e

nodes="${SLURM_NNODES:-1}"
gpus="${SLURM_GPUS_ON_NODE:-1}"
flags=("$@")
if [[ "${1:-}" == -- ]]; then
    # A published script says its flags for all the processes of the job; they are started below.
    printed="$(DRY_RUN=1 NPROC=$((nodes * gpus)) PYTHON="$PYTHON" bash "${@:2}")" || exit 2
    eval "printed=($printed)"
    for index in "${!printed[@]}"; do
        [[ "${printed[index]}" == torchrun_main.py ]] && flags=("${printed[@]:index+1}") && break
    done
fi
name="$(value_of name "${flags[@]}")"
folder="$(value_of save_dir "${flags[@]}")"
folder="${folder:-${name:+runs/$name}}"
if [[ -z "$folder" ]]; then
    echo "give --name or --save_dir: a run that is queued again finds its checkpoints there" >&2
    exit 2
fi

head_node="$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1)"
# Ports above 20000, one for each job of a shared node.
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
launcher=(
    -m peft_pretraining.launch --nnodes "$nodes" --nproc_per_node "$gpus"
    --rdzv_backend c10d --rdzv_endpoint "${head_node:-localhost}:$port" --rdzv_id "${SLURM_JOB_ID:-0}"
)
if [[ " ${flags[*]} " == *" --single_gpu "* ]]; then
    launcher=()
    ((nodes * gpus > 1)) && echo "this run uses one of $((nodes * gpus)) GPUs: ask for --nodes=1 --gpus-per-node=1" >&2
fi
command=(srun "$PYTHON" "${launcher[@]}" torchrun_main.py --continue_from auto "${flags[@]}")
[[ "${DRY_RUN:-0}" == 1 ]] && start "${command[@]}" && exit 0

# The update of the newest checkpoint, 0 without one.
newest_checkpoint() {
    local found
    found="$(ls "$folder" 2>/dev/null | sed -n 's/^model_\([0-9][0-9]*\)$/\1/p' | sort -n | tail -n 1)"
    printf '%s' "${found:-0}"
}

# Since 22.05 srun does not take the processors of a task over from sbatch.
[[ -n "${SLURM_CPUS_PER_TASK:-}" ]] && export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
before="$(newest_checkpoint)"
stopped=0
"${command[@]}" &
job=$!
# srun hands SIGUSR1 on and waits, while at SIGTERM it kills its tasks at once.
trap 'stopped=1; kill -USR1 "$job" 2>/dev/null' TERM
wait "$job"
status=$?
while ((stopped)) && kill -0 "$job" 2>/dev/null; do
    wait "$job"
    status=$?
done
((stopped == 0 || status == 0)) && exit "$status"

update="$(newest_checkpoint)"
if ((update <= before)); then
    echo "stopped at update $update, where this job began: not queued again, or it would repeat itself." \
        "Give it more --time, or less to do before a checkpoint" >&2
    exit 1
fi
echo "stopped at update $update, queued again"
scontrol requeue "$SLURM_JOB_ID" || {
    echo "Slurm does not queue job $SLURM_JOB_ID again: give sbatch the same command once more" >&2
    exit "$status"
}
