#!/usr/bin/env bash
# Sets everything up and pretrains a LLaMA of 9M parameters on the builtin corpus for a few minutes on a CPU.
# No network is needed beyond what pip uses. DRY_RUN=1 prints the command. Arguments are further flags of
# torchrun_main.py:
#
#   bash scripts/demo.sh
#   bash scripts/demo.sh --optimizer ldadamw --lr 1e-3 --num_training_steps 500
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

folder="$(value_of save_dir "$@")"
folder="${folder:-runs/demo-$(date +%Y%m%d-%H%M%S)}"
command=(
    .venv/bin/python torchrun_main.py --single_gpu
    --model_config configs/llama_9m.json
    --dataset builtin
    --optimizer adamw_sn --lr 0.05 --grad_clipping 1.0
    --batch_size 16 --max_length 256 --dtype float32
    --num_training_steps 150 --eval_every 75 --eval_tokens 100K --save_every 150
    --wandb_mode disabled --save_dir "$folder" "$@"
)
[[ "${DRY_RUN:-0}" == 1 ]] && start "${command[@]}" && exit 0

bash scripts/setup_env.sh
"${command[@]}"

.venv/bin/python - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

from peft_pretraining.run_folder.layout import LOSS_CURVE, METRICS, RunFolder

folder = Path(sys.argv[1])
lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
losses = [line["loss"] for line in lines if line.get("loss") is not None]
checked = [line for line in lines if "eval_perplexity" in line]
checkpoint = RunFolder(folder).checkpoints()[0][1]
last = sum(losses[-10:]) / len(losses[-10:])

print()
print(f"training loss          {losses[0]:.2f} at the first update, {last:.2f} over the last ten")
if checked:
    print(f"validation perplexity  {checked[-1]['eval_perplexity']:.1f} ({checked[-1]['eval_tokens']} tokens)")
print(f"checkpoint             {checkpoint}")
print(f"loss curve             {folder / LOSS_CURVE}")
PYTHON
