"""Train every method on the builtin corpus and tabulate final perplexity, state, speed and memory.

    python -m benchmarks.methods baselines|methods [--jobs 2] [--folder runs/methods]

The runs are those of methods.json: one entry a method, one command line a learning rate, all with the flags under
"common". What is done is skipped, so the command can be repeated after an interruption. Writes
benchmarks/results/methods_NAME.json and prints the Markdown table of docs/results.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, write_result
from peft_pretraining.run_folder.layout import METRICS, SUMMARY, RunFolder

GRID = Path(__file__).with_suffix(".json")
TIMED = 50  # the last updates, whose median time is quoted


def train(flags: list[str], folder: Path) -> dict[str, Any]:
    """One run in a process and one thread of its own; its summary, from the run folder if it is done already."""
    name = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:16]
    run = folder / name
    if not (run / SUMMARY).exists():
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        command = [sys.executable, "torchrun_main.py", *flags, "--save_dir", str(run)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        (folder / f"{name}.log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            return {"failed": (done.stderr or done.stdout).strip().splitlines()[-1]}
        for _, weights in RunFolder(run).checkpoints():
            shutil.rmtree(weights)
    summary = json.loads((run / SUMMARY).read_text())
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    updates = [line for line in lines if "loss" in line][-TIMED:]
    median = {k: statistics.median(line[k] for line in updates) for k in ("step_seconds", "optimizer_seconds")}
    speed = statistics.median(line["tokens_per_second"] for line in updates)
    return {**summary, **median, "tokens_per_second": speed, "state_bytes": state_bytes(flags)}


def state_bytes(flags: list[str]) -> int:
    """Bytes of optimizer state, allocated without a run."""
    import optimizers
    from peft_pretraining.cli.parse import parse_config
    from peft_pretraining.model.llama import build_model

    config = parse_config([*flags, "--save_dir", "unused"])
    model = build_model(config.model, "cpu", 0)
    optimizer = optimizers.build_optimizer(config.optimizer.optimizer, model, 1e-3, **config.optimizer.arguments())
    for parameter in model.parameters():
        if not hasattr(optimizer, "state_bytes"):
            parameter.grad = parameter.detach().clone()
    if hasattr(optimizer, "state_bytes"):
        return optimizer.state_bytes()
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values() if hasattr(t, "nbytes")]
    return sum(t.nbytes for t in tensors)


def table(results: dict[str, list[dict[str, Any]]], reference: str) -> str:
    """Markdown: each method at its best learning rate."""
    best = {name: min(runs, key=lambda run: run.get("eval_perplexity", float("inf"))) for name, runs in results.items()}
    base = best[reference].get("eval_perplexity", float("nan"))
    columns = ("method", "flags", "perplexity", f"/ {reference}", "state MiB", "ms an update", "of it optimizer")
    columns += ("tokens/s", "peak MiB")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    ranked = sorted(best.items(), key=lambda item: item[1].get("eval_perplexity", float("inf")))
    for name, run in ranked:
        if "failed" in run:
            lines.append(f"| {name} | `{run['flags']}` | failed: {run['failed']} | | | | | | |")
            continue
        against = run["eval_perplexity"] / base
        cells = (name, f"`{run['flags']}`", f"{run['eval_perplexity']:.1f}", f"{against:.3f}")
        cells += (f"{run['state_bytes'] / 2**20:.1f}", f"{run['step_seconds'] * 1e3:.0f}")
        cells += (f"{run['optimizer_seconds'] * 1e3:.0f}", f"{run['tokens_per_second']:.0f}")
        lines.append("| " + " | ".join((*cells, f"{run['peak_memory_mib']:.0f}")) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run a group of the grid and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", help="a group of methods.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "methods", help="where the run folders are")
    arguments = parser.parse_args()
    grid = json.loads(GRID.read_text())
    group = grid[arguments.group]
    length = ["--num_training_steps", str(group["updates"]), "--eval_every", str(group["updates"])]
    jobs = [(name, flags) for name, lines in group["runs"].items() for flags in lines]
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def work(job: tuple[str, str]) -> dict[str, Any]:
        return {"flags": job[1], **train([*grid["common"], *length, *shlex.split(job[1])], arguments.folder)}

    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(tqdm(pool.map(work, jobs), total=len(jobs), unit="run"))
    results: dict[str, list[dict[str, Any]]] = {}
    for (name, _), result in zip(jobs, done, strict=True):
        results.setdefault(name, []).append(result)
    text = table(results, group["reference"])
    write_result(
        f"methods_{arguments.group}",
        {"common": grid["common"], "updates": group["updates"], "runs": results, "table": text},
    )
    print(text)


if __name__ == "__main__":
    main()
