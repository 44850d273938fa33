"""Trains 7B for five updates on one GPU under a hard cap on its memory, and records what the allocator saw.

    python -m benchmarks.memory_gpu [--only NAME ...]

Each case runs in a process of its own that may allocate `cap_gib` (GiB) and no more: a case that needs
more fails as it would on a card of that size. Writes benchmarks/results/memory_gpu.json: predicted and measured peak,
cap, losses. Exit status: 0 when all cases fit, 1 when one did not, 2 without a CUDA device.
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
from peft_pretraining.memory.prediction import predict
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step
from peft_pretraining.units import GIB

UPDATES = 5
_SHARED = (
    "--single_gpu --device cuda --dataset builtin --packing --wandb_mode disabled --max_length 256 --dtype bfloat16 "
    "--activation_checkpointing --lr 1e-4 --warmup_steps 1"
)
CASES = {
    "galore_adamw8bit_per_layer": (22.0, "--optimizer galore_adamw8bit_per_layer --rank 1024 --batch_size 16"),
    "adamw_sn": (16.0, "--optimizer adamw_sn --beta1 0 --per_layer --batch_size 16"),
}
"""Name -> cap in GiB, and flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases and writes the result. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_config", default="configs/llama_7b.json")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("this needs a CUDA device, and torch sees none; python -m peft_pretraining.memory predicts without one")
        return 2
    cases = {}
    for name in arguments.only:
        cap, flags = CASES[name]
        cases[name] = run_case(cap, [*_SHARED.split(), *flags.split(), "--model_config", arguments.model_config])
        print(f"{name}: {json.dumps(cases[name])}", flush=True)
    print(write_result("memory_gpu", {"updates": UPDATES, "cases": cases}))
    return int(not all(case["fits"] for case in cases.values()))


def run_case(cap: float, flags: Sequence[str]) -> dict[str, Any]:
    """Predicted and, from a process of its own, measured figures of one command line under a cap in GiB."""
    case = {"flags": " ".join(flags), "cap_gib": cap, "predicted_peak_gib": predict(parse_config(flags)).peak / GIB}
    words = [sys.executable, "-c", f"from benchmarks.memory_gpu import train; train({cap})", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    child = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if child.returncode:
        return {**case, "fits": False, "error": child.stderr[-2000:]}
    return {**case, "fits": True, **json.loads(child.stdout.splitlines()[-1])}


def train(cap: float) -> None:
    """Five updates as the words of this process say, under the cap; prints figures as JSON."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total))
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([*sys.argv[1:], "--save_dir", str(Path(folder) / "run")])
        with StopSignals() as stop, session(config.parallel) as world, run_folder(config, world) as place:
            run = restore_or_start(config, world, stop, place)
            results = [train_step(run) for _ in range(UPDATES)]
    figures = {
        "allocated_peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_peak_gib": torch.cuda.max_memory_reserved() / GIB,
        "losses": [result.loss for result in results],
        "seconds": [result.seconds for result in results],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
