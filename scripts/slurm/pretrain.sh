#!/usr/bin/env bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
# A run on one or several nodes, which saves before its time runs out, is queued again and goes on:
#
#   sbatch --nodes=2 scripts/slurm/pretrain.sh --save_dir runs/NAME --model_config configs/llama_1b.json ...
#
# Arguments are flags of torchrun_main.py; --save_dir is needed, on a file system that all nodes share. PYTHON names the
# interpreter (default: .venv/bin/python). DRY_RUN=1 prints the command. For many runs: python -m peft_pretraining.sweep
# FILE --slurm OUT.sh.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 1

if [[ " $*" != *" --save"[_-]"dir"[=\ ]* ]]; then
    echo "give --save_dir: a run that is queued again finds its checkpoints there" >&2
    exit 2
fi
python="${PYTHON:-.venv/bin/python}"
nodes="${SLURM_NNODES:-1}"
head_node="$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1)"
# Ports above 20000, one for each job of a shared node.
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))

# torchrun kills its processes 30 seconds after a signal, and itself ends at SIGUSR1, if it is not told otherwise: here
# they have almost all of the 300 seconds to finish the update and save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}"
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
command=(
    srun "$python" -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}"
    --rdzv_backend c10d --rdzv_endpoint "${head_node:-localhost}:$port" --rdzv_id "${SLURM_JOB_ID:-0}"
    torchrun_main.py --continue_from auto "$@"
)
if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    exit 0
fi

stopped=0
"${command[@]}" &
job=$!
# torchrun hands the signal on; the processes save and end.
trap 'stopped=1; kill -TERM "$job" 2>/dev/null' TERM
wait "$job"
status=$?
if ((stopped)); then
    wait "$job" 2>/dev/null
    status=$?
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
