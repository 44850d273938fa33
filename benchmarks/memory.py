"""Compares the memory predicted for an update with the bytes of tensors that real updates allocate on the CPU.

    python -m benchmarks.memory [--model_config configs/llama_60m.json] [--only NAME ...]

Every case is trained for two updates by the harness itself, in a process of its own, while `Ledger` follows every
tensor that is born and dies. Writes benchmarks/results/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, write_result
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.distributed.world import session
from peft_pretraining.memory.ledger import Ledger
from peft_pretraining.memory.prediction import STATE, WEIGHTS, mark_state, predict
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step

_UPDATES = 2
_SHARED = "--single_gpu --device cpu --dataset builtin --packing --workers 0 --wandb_mode disabled --max_length 256"
CASES = {
    "adamw": "--optimizer adamw",
    "adamw, fp32 weights": "--optimizer adamw --dtype float32",
    "adamw, activation checkpointing": "--optimizer adamw --activation_checkpointing",
    "adamw, int8 state, per layer": "--optimizer adamw --state_dtype int8 --per_layer",
    "adamw_sn": "--optimizer adamw_sn",
    "adamw_sn, no momentum, per layer, activation checkpointing": (
        "--optimizer adamw_sn --beta1 0 --per_layer --activation_checkpointing"
    ),
    "adam_mini, 2 micro-batches": "--optimizer adam_mini --gradient_accumulation 2",
    "sgd_boost, per layer, 2 micro-batches": "--optimizer sgd_boost --per_layer --gradient_accumulation 2",
    "galore_adamw, clipped": "--optimizer galore_adamw --grad_clipping 1",
    "galore_adamw8bit_per_layer": "--optimizer galore_adamw8bit_per_layer --activation_checkpointing",
    "ldadamw, activation checkpointing": "--optimizer ldadamw --activation_checkpointing",
    "muon": "--optimizer muon",
    "adafactor": "--optimizer adafactor",
    "adam8bit, transformers' forward": "--optimizer adam8bit --use_hf_model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; returns 0 when every prediction is within 5%."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_config", default="configs/llama_60m.json")
    parser.add_argument("--batch_size", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    arguments = parser.parse_args(argv)
    shared = [*_SHARED.split(), "--model_config", arguments.model_config, "--batch_size", str(arguments.batch_size)]
    cases = {}
    for name in arguments.only:
        cases[name] = compare([*shared, *CASES[name].split()])
        print(f"{name:60} {cases[name]['predicted_mib']:9.1f} {cases[name]['measured_mib']:9.1f} MiB", flush=True)
    worst = max(abs(case["error"]) for case in cases.values())
    print(f"largest error {worst:.2%}; {write_result('memory', {'largest_error': worst, 'cases': cases})}")
    return int(worst > 0.05)


def compare(flags: Sequence[str]) -> dict[str, Any]:
    """Predicted and measured peak of one command line, in MiB, and the relative error of the former."""
    config = parse_config(flags)
    account = predict(config)
    words = [sys.executable, "-c", "from benchmarks.memory import measure; measure()", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(flags)} failed:\n{child.stderr}")
    measured = json.loads(child.stdout.splitlines()[-1])
    return {
        "flags": " ".join(flags),
        "predicted_mib": account.peak / 2**20,
        "measured_mib": measured["peak"] / 2**20,
        "error": account.peak / measured["peak"] - 1,
        "predicted_moment": account.moment,
        "predicted_state_mib": sum(size for kind, size in account.largest.items() if kind.startswith(STATE)) / 2**20,
        "measured_state_mib": measured["state"] / 2**20,
        "predicted_at_peak_mib": {kind: size / 2**20 for kind, size in account.at_peak.items()},
    }


def measure() -> None:
    """Trains as the words of this process say and prints the bytes found, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([*sys.argv[1:], "--save_dir", str(Path(folder) / "run")])
        with StopSignals() as stop, session(config.parallel) as world, run_folder(config, world) as place:
            run = restore_or_start(config, world, stop, place)
            ledger = Ledger(torch.device("cpu"))
            ledger.mark(WEIGHTS, [*run.model.parameters(), *run.model.buffers()])
            mark_state(ledger, run.optimizer)
            with ledger:
                for _ in range(_UPDATES):
                    train_step(run)
            mark_state(ledger, run.optimizer)
    account = ledger.account()
    state = sum(size for kind, size in account.largest.items() if kind.startswith(STATE))
    print(json.dumps({"peak": account.peak, "moment": account.moment, "state": state}))


if __name__ == "__main__":
    sys.exit(main())
