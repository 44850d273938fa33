"""Optimizer steps, training rate and memory on one CUDA GPU, within eight minutes: `python -m benchmarks.gpu`.

    python -m benchmarks.gpu [--parts optimizer training per_layer] [--minutes 8]

optimizer: one step of AdamW-SN, Adam-mini and SGD-Boost, compiled, in float32 and bfloat16 at the shapes of 350M, 1B
and 7B (as many layers of 7B as fit) against torch's fused AdamW in the same run, with the share of the measured memory
bandwidth. training: tokens a second, model-FLOPs utilisation against the measured rate of bfloat16 products and peak
memory against the prediction for 60M, 350M and 1B, compiled. per_layer: seconds of a 7B update inside the backward
pass. Cases that the time no longer allows are listed as left out. Writes benchmarks/results/gpu.json after each case.
Exit status 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import optimizers
from benchmarks.common import ROOT, median_ratio, write_result
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.distributed.world import session
from peft_pretraining.memory.prediction import predict
from peft_pretraining.model.llama import ModelConfig, build_model, parameter_count
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step
from peft_pretraining.units import GIB

REPEATS = 10
METHODS = ("adamw_sn", "adam_mini", "sgd_boost")
_SHARED = (
    "--single_gpu --device cuda --dataset builtin --packing --wandb_mode disabled --dtype bfloat16 --lr 1e-4 "
    "--eval_every 1000 --max_length 256"
)
TRAINING = {
    "llama_60m": "--batch_size 128 --optimizer adamw_sn --compile_model --execution compiled",
    "llama_350m": "--batch_size 64 --optimizer adamw_sn --compile_model --execution compiled",
    "llama_1b": "--batch_size 32 --optimizer adamw_sn --compile_model --execution compiled",
}
PER_LAYER = {
    "galore_adamw8bit_per_layer": "--optimizer galore_adamw8bit_per_layer --rank 1024 --batch_size 16",
    "adamw_sn": "--optimizer adamw_sn --beta1 0 --per_layer --batch_size 16",
}


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds of one call on the device."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    action()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def limits() -> dict[str, float]:
    """Bytes a second of a copy, read and written, and floating-point operations a second of bfloat16 products."""
    source = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = (lambda: target.copy_(source)), (lambda: left @ left)
    for action in (copy, product):
        seconds_of(action)
    copying, multiplying = (min(seconds_of(action) for _ in range(REPEATS)) for action in (copy, product))
    return {"bandwidth": 2 * GIB / copying, "products": 2 * 8192**3 / multiplying}


def shapes(name: str, dtype: torch.dtype) -> nn.Module:
    """The model's parameters with random gradients; of 7B, eight layers."""
    model = build_model(ModelConfig(str(ROOT / "configs" / f"{name}.json")), "meta", seed=0)
    if name == "llama_7b":
        model.model.layers = model.model.layers[:8]
    model = nn.Module.to(model.to_empty(device="cuda"), dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
        parameter.grad = torch.randn_like(parameter).mul_(1e-3)
    return model


def optimizer_step(size: str, dtype: torch.dtype, method: str, bandwidth: float) -> dict[str, Any]:
    """A method against torch's fused AdamW, repeats in turn."""
    model = shapes(size, dtype)
    narrow = {} if dtype == torch.float32 else {"state_dtype": "bfloat16", "weight_rounding": "stochastic"}
    mine = optimizers.build_optimizer(method, model, 1e-5, execution="compiled", **narrow)
    assert isinstance(mine, optimizers.EngineOptimizer)
    mine.trusts_gradients = True
    peer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    started = time.perf_counter()
    for _ in range(3):
        mine.step()
        peer.step()
    torch.cuda.synchronize()
    compiling = time.perf_counter() - started
    times = [(seconds_of(mine.step), seconds_of(peer.step)) for _ in range(REPEATS)]
    mine_s, peer_s = (list(column) for column in zip(*times, strict=True))
    moved = 3 * sum(p.nbytes for p in model.parameters()) + 2 * mine.state_bytes()
    return {
        "parameters": parameter_count(model),
        "milliseconds": {"mine": statistics.median(mine_s) * 1e3, "peer": statistics.median(peer_s) * 1e3},
        "ratio": median_ratio(mine_s, peer_s),
        "of_bandwidth": moved / bandwidth / statistics.median(mine_s),
        "seconds_of_first_three": compiling,
    }


def train(size: str, flags: str, updates: int, products: float) -> dict[str, Any]:
    """Updates by the harness itself, the first two not counted."""
    words = [*_SHARED.split(), *flags.split(), "--model_config", str(ROOT / "configs" / f"{size}.json")]
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([*words, "--save_dir", str(Path(folder) / "run")])
        with StopSignals() as stop, session(config.parallel) as world, run_folder(config, world) as place:
            run = restore_or_start(config, world, stop, place)
            body = parameter_count(run.model) - run.model.config.vocab_size * run.model.config.hidden_size  # type: ignore[operator, union-attr]
            results = [train_step(run) for _ in range(updates + 2)][2:]
    seconds = statistics.median(r.seconds for r in results)
    rate = results[-1].tokens / seconds
    peak, predicted = torch.cuda.max_memory_allocated() / GIB, predict(parse_config(words)).peak / GIB
    return {
        "flags": " ".join(words),
        "seconds": seconds,
        "tokens_per_second": rate,
        "flops_utilisation": 6 * body * rate / products,
        "peak_gib": peak,
        "predicted_peak_gib": predicted,
        "losses": [r.loss for r in results],
    }


def cases(found: dict[str, float]) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(part, name, measurement), the most wanted first."""
    checkpointed = "--activation_checkpointing"
    for size, flags in TRAINING.items():
        yield "training", size, lambda s=size, f=flags: train(s, f, 8, found["products"])  # type: ignore[misc]
    for method, flags in PER_LAYER.items():
        yield (
            "per_layer",
            method,
            lambda f=flags: train("llama_7b", f"{f} {checkpointed}", 3, found["products"]),  # type: ignore[misc]
        )
    for size in ("llama_1b", "llama_350m", "llama_7b"):
        for dtype in (torch.bfloat16, torch.float32):
            for method in METHODS:
                name = f"{method} {size} {str(dtype).removeprefix('torch.')}"
                yield (
                    "optimizer",
                    name,
                    lambda s=size, d=dtype, m=method: optimizer_step(s, d, m, found["bandwidth"]),  # type: ignore[misc]
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the time allows. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("optimizer", "training", "per_layer"))
    parser.add_argument("--minutes", type=float, default=8.0, help="no case is begun with less than a minute left")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and torch sees none; benchmarks.optimizer_step runs on a CPU")
        return 2
    started, found = time.perf_counter(), limits()
    results: dict[str, Any] = {"limits": found, "left_out": []}
    for part, name, measure in cases(found):
        if arguments.parts and part not in arguments.parts:
            continue
        if time.perf_counter() - started > 60 * (arguments.minutes - 1):
            results["left_out"].append(f"{part}: {name}")
            continue
        try:
            results.setdefault(part, {})[name] = measure()
        except (torch.OutOfMemoryError, RuntimeError) as error:  # one case must not cost the others their result
            results.setdefault(part, {})[name] = {"error": str(error)[:500]}
        print(part, name, results[part][name], flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        write_result("gpu", results)
    print(write_result("gpu", results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
