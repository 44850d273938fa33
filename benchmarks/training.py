"""Whole training against a plain Hugging Face loop and the HF Trainer: `python -m benchmarks.training
--models llama_20m`.

Equal model, batch (16 x 256, padded as C4) and dtype (bf16) on the CPU. Positions, padded ones included,
are what a batch holds: the same for all loops. Writes results/training.json.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from benchmarks.common import (
    ROOT,
    matmul_rate,
    median_ratio,
    peak_memory_mib,
    reset_peak_memory,
    resident_memory_mib,
    write_result,
)
from benchmarks.training_loops import LENGTH, LOOPS, ROWS, c4_batches
from peft_pretraining.model.llama import ModelConfig, build_model, parameter_count

_POSITIONS = ROWS * LENGTH


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["llama_20m", "llama_60m"], help="names in configs/")
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS, help="which to compare")
    parser.add_argument("--repeats", type=int, default=7, help="paired repeats")
    parser.add_argument("--updates", type=int, default=1, help="updates a repeat")
    parser.add_argument("--threads", type=int, default=2, help="threads of matrix products")
    parser.add_argument(
        "--cpu_time", action="store_true", help="one thread, timed in CPU seconds: ratios hold on a busy machine"
    )
    parser.add_argument("--name", default="training", help="of the result file")
    parser.add_argument("--peak_memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logger.disable("peft_pretraining")
    options.threads = 1 if options.cpu_time else options.threads
    torch.set_num_threads(options.threads)
    if options.peak_memory_of:
        sys.stdout.write(json.dumps(_peak_memory(options.models[0], options.peak_memory_of)) + "\n")
        return
    figures: dict[str, Any] = {}
    setting = {"rows": ROWS, "length": LENGTH, "dtype": "bfloat16", "clock": "cpu" if options.cpu_time else "wall"}
    for model in options.models:
        figures[model] = _figures(model, options)
        path = write_result(options.name, {**setting, "models": figures})  # after each: a run of several takes long
        sys.stdout.write(f"{path}: {model}\n{_table(figures[model])}\n")


def _config(model: str) -> Path:
    return ROOT / "configs" / f"{model}.json"


def _figures(model: str, options: argparse.Namespace) -> dict[str, Any]:
    shape = build_model(ModelConfig(str(_config(model))), "meta", seed=0)
    vocabulary = shape.config.vocab_size
    clock = time.process_time if options.cpu_time else time.perf_counter
    loops = {name: LOOPS[name](_config(model), clock) for name in options.loops}
    for loop in loops.values():
        loop(c4_batches(4, vocabulary, seed=1))
    seconds: dict[str, list[float]] = {name: [] for name in [*loops, "harness_packed"]}
    rates, tokens = [], []
    for repeat in range(options.repeats):
        batches = c4_batches(options.updates, vocabulary, seed=100 + repeat)
        rates.append(matmul_rate(torch.bfloat16, repeats=3, clock=clock))
        tokens.append(sum(int(lengths.sum()) for _, lengths in batches))
        for name, loop in loops.items():
            seconds[name].append(loop(batches))
        if "harness" in loops:
            packed = c4_batches(options.updates, vocabulary, seed=100 + repeat, packed=True)
            seconds["harness_packed"].append(loops["harness"](packed))
    memory = {name: _memory_in_child(model, name, options.threads) for name in loops}
    body = parameter_count(shape) - vocabulary * shape.config.hidden_size
    work = {"positions": _POSITIONS * options.updates, "parameters": body, "tokens": tokens, "rates": rates}
    return {
        "real_token_share": statistics.mean(tokens) / work["positions"],
        "matmul_gflops": max(rates) / 1e9,
        "loops": {name: _summary(name, times, seconds, memory, work) for name, times in seconds.items() if times},
    }


def _summary(
    name: str, times: list[float], seconds: dict[str, list[float]], memory: dict[str, Any], work: dict[str, Any]
) -> dict[str, Any]:
    """Rates of one loop, and its ratios to the others; utilisation counts 6 FLOPs a weight and real token."""
    tokens = [work["positions"]] * len(times) if name == "harness_packed" else work["tokens"]
    flops = [(2 if name == "evaluation" else 6) * work["parameters"] * count for count in tokens]
    utilisation = [f / t / rate for f, t, rate in zip(flops, times, work["rates"], strict=True)]
    summary: dict[str, Any] = {
        "positions_per_second": statistics.median(work["positions"] / t for t in times),
        "real_tokens_per_second": statistics.median(n / t for n, t in zip(tokens, times, strict=True)),
        "flops_utilisation": statistics.median(utilisation),
        "seconds": times,
        "rate_over": {
            other: median_ratio(seconds[other], times) for other in seconds if seconds[other] and other != name
        },
    }
    if name in memory:
        summary["memory_mib"] = memory[name]
        summary["memory_over"] = {
            other: {kind: memory[name][kind] / memory[other][kind] for kind in memory[name]}
            for other in memory
            if other != name
        }
    return summary


def _table(figures: dict[str, Any]) -> str:
    lines = [f"{'loop':16}{'positions/s':>12}{'over plain':>12}{'peak MiB':>10}{'over plain':>12}{'of matmul':>11}"]
    for name, loop in figures["loops"].items():
        rate, peak = loop["rate_over"].get("plain", 1.0), loop.get("memory_mib", {}).get("process", math.nan)
        memory = loop.get("memory_over", {}).get("plain", {}).get("process", math.nan)
        share = loop["flops_utilisation"]
        lines.append(
            f"{name:16}{loop['positions_per_second']:12.0f}{rate:12.2f}{peak:10.0f}{memory:12.2f}{share:11.0%}"
        )
    return "\n".join(lines)


def _memory_in_child(model: str, loop: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training", "--models", model, "--peak_memory_of", loop]
    command += ["--threads", str(threads)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def _peak_memory(model: str, name: str) -> dict[str, float]:
    """Peak resident memory of training after a warm-up: of the whole process, and beyond what imports take (MiB)."""
    imports = resident_memory_mib()
    vocabulary = build_model(ModelConfig(str(_config(model))), "meta", seed=0).config.vocab_size
    loop = LOOPS[name](_config(model), time.perf_counter)
    loop(c4_batches(4, vocabulary, seed=1))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling has left is no need of training
    reset_peak_memory()
    loop(c4_batches(3, vocabulary, seed=2))
    return {"process": peak_memory_mib(), "training": peak_memory_mib() - imports}


if __name__ == "__main__":
    main()
