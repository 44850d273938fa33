"""Trains for a while and watches the processes: memory, threads, open files and speed must not drift.

    python -m benchmarks.soak [--minutes 45]

A real run of torchrun_main.py, llama_9m on the builtin corpus, in one process of one thread with one data worker,
with evaluations and checkpoints all along; at the end it is asked to stop as a scheduler would, and must save. Every
five seconds all its processes are looked at. Medians of stretches of five minutes are compared, without the warm-up.
Threads are drawn only: one that reads ahead ends with its shard. On a busy machine tokens a second are the neighbours'
affair, and processor seconds an update say more. Writes benchmarks/results/soak.json and soak.png; exit status 1 if
something drifted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import matplotlib
import psutil
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, write_result
from peft_pretraining.run_folder.layout import METRICS

matplotlib.use("Agg")
FLAGS = shlex.split(
    "--single_gpu --model_config configs/llama_9m.json --dataset builtin --optimizer adamw_sn --lr 1e-2 --batch_size 4 "
    "--total_batch_size 8 --scheduler constant --warmup_steps 100 --num_training_steps 1000000 --eval_tokens 20K "
    "--workers 1 --keep_checkpoints 2 --device cpu --wandb_mode disabled"
)
INTERVAL = 5.0  # seconds between two looks
MOST_MEMORY_DRIFT, MOST_SPEED_DRIFT = 0.02, 0.05
Sample = dict[str, float]


def look(process: psutil.Process) -> Sample:
    """Sums over a process and its children at this moment; memory in MiB, processor time in seconds."""
    total = dict.fromkeys(("rss_mib", "files", "threads", "processes", "cpu_seconds"), 0.0)
    for member in (process, *process.children(recursive=True)):
        with member.oneshot():
            times = member.cpu_times()
            total["rss_mib"] += member.memory_info().rss / 2**20
            total["files"] += member.num_fds()
            total["threads"] += member.num_threads()
            total["processes"] += 1
            total["cpu_seconds"] += times.user + times.system
    return total


def watch(command: list[str], metrics: Path, log: IO[str], seconds: float) -> tuple[list[Sample], list[Sample], int]:
    """Runs `command` for that long. Returns what was seen, the updates with their times, and the exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    process, started = psutil.Process(child.pid), time.monotonic()
    samples: list[Sample] = []
    updates: list[Sample] = []
    lines: IO[str] | None = None
    with tqdm(total=round(seconds), unit="s") as bar:
        while (now := time.monotonic() - started) < seconds:
            if child.poll() is not None:
                raise SystemExit(f"the run ended with status {child.returncode} after {now:.0f} s; see {log.name}")
            if lines is None and metrics.exists():
                lines = open(metrics, encoding="utf-8")  # noqa: SIM115
            records = [json.loads(line) for line in lines if line.endswith("\n")] if lines else []
            updates += [{"at": now, **record} for record in records if "loss" in record]
            samples.append({"at": now, "updates": len(updates), **look(process)})
            bar.update(round(now) - bar.n)
            time.sleep(INTERVAL)
    child.send_signal(signal.SIGTERM)
    return samples, updates, child.wait(timeout=120)


def windows(samples: list[Sample], updates: list[Sample], warm_up: float, length: float) -> list[dict[str, Any]]:
    """Medians and extremes of each stretch of `length` seconds after the warm-up."""
    found = []
    start = warm_up
    while start + length <= samples[-1]["at"] + INTERVAL:
        inside = [sample for sample in samples if start <= sample["at"] < start + length]
        speeds = [update["tokens_per_second"] for update in updates if start <= update["at"] < start + length]
        done = inside[-1]["updates"] - inside[0]["updates"]
        found.append(
            {
                "from_minute": round(start / 60, 2),
                "rss_mib": round(statistics.median(sample["rss_mib"] for sample in inside), 1),
                "rss_mib_peak": round(max(sample["rss_mib"] for sample in inside), 1),
                **{name: statistics.median(sample[name] for sample in inside) for name in ("files", "threads")},
                "files_most": max(sample["files"] for sample in inside),
                "processes": max(sample["processes"] for sample in inside),
                "tokens_per_second": round(statistics.median(speeds), 1),
                "cpu_seconds_an_update": round((inside[-1]["cpu_seconds"] - inside[0]["cpu_seconds"]) / done, 4),
            }
        )
        start += length
    return found


def judge(found: list[dict[str, Any]], status: int) -> dict[str, dict[str, Any]]:
    """What was asked, what was seen, and whether it holds; drifts are largest over smallest window, less one."""

    def drift(name: str) -> float:
        return round(max(each[name] for each in found) / min(each[name] for each in found) - 1, 4)

    memory, peaks, speed = drift("rss_mib"), drift("rss_mib_peak"), drift("tokens_per_second")
    cpu, files = drift("cpu_seconds_an_update"), sorted({each["files"] for each in found})
    return {
        "memory": {"drift": memory, "drift_of_peaks": peaks, "holds": memory <= MOST_MEMORY_DRIFT},
        "tokens_per_second": {"drift": speed, "holds": speed <= MOST_SPEED_DRIFT},
        "cpu_seconds_an_update": {"drift": cpu, "holds": cpu <= MOST_SPEED_DRIFT},
        "open_files": {"medians": files, "holds": len(files) == 1},
        "stopped_after_saving": {"status": status, "holds": status == 75},
    }


def draw(samples: list[Sample], updates: list[Sample], warm_up: float, path: Path) -> None:
    """Four panels over time; the warm-up is shaded."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, sharex=True, figsize=(9, 9), layout="constrained")
    minutes = [sample["at"] / 60 for sample in samples]
    for axis, (name, label) in zip(
        axes, (("rss_mib", "resident memory, MiB"), ("files", "open files"), ("threads", "threads")), strict=False
    ):
        axis.plot(minutes, [sample[name] for sample in samples], linewidth=1)
        axis.set_ylabel(label)
    axes[3].plot([u["at"] / 60 for u in updates], [u["tokens_per_second"] for u in updates], ".", markersize=1.5)
    axes[3].set_ylabel("tokens a second")
    axes[3].set_xlabel("minutes")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.axvspan(0, warm_up / 60, color="grey", alpha=0.2)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    """Runs, writes, prints. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45.0, help="how long the run is watched")
    parser.add_argument("--warm_up", type=float, default=5.0, help="minutes that are not judged")
    parser.add_argument("--window", type=float, default=5.0, help="minutes whose medians are compared")
    parser.add_argument("--every", type=int, default=300, help="updates between evaluations, and between checkpoints")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak", help="the run's folder; emptied first")
    parser.add_argument("--name", default="soak", help="names the files under benchmarks/results")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    every = ["--eval_every", str(arguments.every), "--save_every", str(arguments.every)]
    flags = [*FLAGS, *every, "--save_dir", str(arguments.folder)]
    with open(arguments.folder / "log", "w") as log:
        command = [sys.executable, "torchrun_main.py", *flags]
        samples, updates, status = watch(command, arguments.folder / METRICS, log, 60 * arguments.minutes)
    warm_up = 60 * arguments.warm_up
    found = windows(samples, updates, warm_up, 60 * arguments.window)
    verdicts = judge(found, status)
    checkpoints = (arguments.folder / "log").read_text().count("INFO    checkpoint")
    facts = {"minutes": arguments.minutes, "updates": len(updates), "checkpoints_written": checkpoints}
    write_result(arguments.name, {"flags": flags[:-2], **facts, "verdicts": verdicts, "windows": found})
    draw(samples, updates, warm_up, RESULTS / f"{arguments.name}.png")
    print(json.dumps({**facts, **verdicts}, indent=2))
    return 0 if all(verdict["holds"] for verdict in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
