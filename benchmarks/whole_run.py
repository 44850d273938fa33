"""What surrounds the training step: waiting for data, evaluation, the start, growth with size, bytes between processes.

    python -m benchmarks.whole_run [--parts data start processes scaling] [--threads 1] [--updates 6]

data: share of an update spent waiting for the next batch at the default number of workers, the rate of the tokenizing
pipeline alone, and evaluation against training, llama_20m, compiled. start: seconds from the command to its first
update, llama_9m, caches warm. processes: seconds of an update on one process and on two with gloo, one thread each, the
same rows a process, and the bytes that each sends, projected and whole. scaling: seconds of an update over model sizes,
one thread's CPU time, with the exponent of a power law.
Writes benchmarks/results/whole_run.json after each part.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, ROOT, write_result
from benchmarks.training_loops import c4_batches, harness_loop
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.distributed.world import session
from peft_pretraining.model.llama import ModelConfig, build_model, parameter_count
from peft_pretraining.run_folder.layout import METRICS
from peft_pretraining.training.evaluation import evaluate
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step

_FAST = "--compile_model --execution compiled"
_SHARED = "--dataset builtin --device cpu --max_length 256 --wandb_mode disabled --lr 1e-3"
SIZES = ("9m", "20m", "35m", "60m", "130m")
SCALING_ROWS = 4


def data(updates: int) -> dict[str, Any]:
    """Waiting, pipeline and evaluation of one run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--single_gpu {_SHARED} --model_config configs/llama_20m.json --optimizer adamw --batch_size 16 {_FAST}"
        )
        config = parse_config([*flags.split(), "--eval_tokens", "20K", "--save_dir", f"{folder}/run"])
        with StopSignals() as stop, session(config.parallel) as world, run_folder(config, world) as place:
            run = restore_or_start(config, world, stop, place)
            for _ in range(2):
                train_step(run)
            results = [train_step(run) for _ in range(updates)]
            evaluate(run)
            started = time.perf_counter()
            evaluation = evaluate(run)
            evaluating = time.perf_counter() - started
            for _ in range(10):  # what workers have read ahead
                next(run.data)
            started = time.perf_counter()
            read = sum(int(b.lengths.sum()) for _ in range(40) for b in next(run.data).micro_batches)
            reading = time.perf_counter() - started
    assert evaluation is not None
    training = statistics.median(r.tokens / r.seconds for r in results)
    return {
        "data_share": [r.phases["data"] / r.seconds for r in results],
        "training_tokens_per_second": training,
        "pipeline_tokens_per_second": read / reading,
        "pipeline_over_training": read / reading / training,
        "evaluation_over_training": evaluation.tokens / evaluating / training,
    }


def start() -> dict[str, Any]:
    """Seconds from the command to the end of its first update, the second time the command is run."""
    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--single_gpu {_SHARED} --model_config configs/llama_9m.json --optimizer adamw_sn --batch_size 16"
            words = [sys.executable, "torchrun_main.py", *flags.split(), "--num_training_steps", "1"]
            words += ["--eval_tokens", "2K", "--save_dir", f"{folder}/run"]
            started = time.time()
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
            seconds.append((Path(folder) / "run" / METRICS).stat().st_ctime - started)
            lines = (Path(folder) / "run" / METRICS).read_text().splitlines()
            assert "loss" in json.loads(lines[0])
    return {"seconds": seconds[-1], "includes": "one update of 16 x 256 and the evaluation of 2,000 tokens"}


def processes(updates: int = 6) -> dict[str, Any]:
    """Seconds of an update on one process and on two, and the bytes that each of two sends."""
    cases = {
        "adamw": "--optimizer adamw",
        "galore_adamw": "--optimizer galore_adamw --rank 64 --update_proj_gap 1000",
        "galore_adamw, clipped": "--optimizer galore_adamw --rank 64 --update_proj_gap 1000 --grad_clipping 1",
    }
    figures = {}
    for name, flags in cases.items():
        one, two = (_on_processes(count, flags, updates) for count in (1, 2))
        figures[name] = {
            "seconds_on_1": one["step_seconds"],
            "seconds_on_2": two["step_seconds"],
            "communication_seconds": two["communication_seconds"],
            "sent_mib": two["sent_mib"],
        }
    return figures


def _on_processes(count: int, flags: str, updates: int) -> dict[str, float]:
    """Medians over the updates after the first two."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        words += ["torchrun_main.py", *_SHARED.split(), "--model_config", "configs/llama_20m.json", *flags.split()]
        words += f"--batch_size 4 --num_training_steps {updates + 2} --eval_tokens 2K --workers 0".split()
        words += ["--save_dir", f"{folder}/run"]
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in (Path(folder) / "run" / METRICS).read_text().splitlines()]
    trained = [line for line in lines if "loss" in line][2:]
    keys = ("step_seconds", "communication_seconds", "sent_mib")
    return {key: statistics.median(line.get(key, 0.0) for line in trained) for key in keys}


def scaling(repeats: int) -> dict[str, Any]:
    """CPU seconds of an update of 4 full rows of 256 tokens, one thread, eager, and the exponent over parameters."""
    torch.set_num_threads(1)
    rows = [(ids[:SCALING_ROWS], lengths[:SCALING_ROWS]) for ids, lengths in c4_batches(1, 32000, packed=True)]
    figures: dict[str, Any] = {}
    for size in SIZES:
        path = ROOT / "configs" / f"llama_{size}.json"
        shape = build_model(ModelConfig(str(path)), "meta", seed=0)
        body = parameter_count(shape) - shape.config.vocab_size * shape.config.hidden_size
        loop = harness_loop(path, time.process_time, compiled=False)
        loop(rows)
        figures[size] = {"parameters": body, "seconds": min(loop(rows) for _ in range(repeats))}
    sizes, seconds = ([math.log(f[key]) for f in figures.values()] for key in ("parameters", "seconds"))
    exponent = float(np.polyfit(sizes, seconds, 1)[0])
    return {"tokens": SCALING_ROWS * 256, "sizes": figures, "exponent": exponent}


def main() -> None:
    """Measure the parts asked for; others stay as the last result file has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "data": lambda: data(arguments.updates),
        "start": start,
        "processes": processes,
        "scaling": lambda: scaling(3),
    }
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--updates", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "whole_run.json"
    kept = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    for name in arguments.parts:
        kept[name] = {**parts[name](), "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
        print(name, json.dumps(kept[name], indent=1), write_result("whole_run", {"parts": kept}), flush=True)


if __name__ == "__main__":
    main()
