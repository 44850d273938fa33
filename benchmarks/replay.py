"""Follows whole runs of the released harnesses, recorded on a CPU from equal weights and documents.

    python -m benchmarks.replay [--dtype float32|bfloat16|float32_accumulation2] [--only NAME ...] [--stop N]

Each recorded run is made again by torchrun_main.py with --protocol published and the flags of its paper; prints the
largest relative deviation of the training loss beside how far the released harness parts from itself when its weights
are changed in the last bit. Writes benchmarks/results/replay_DTYPE.json and docs/figures/replay_DTYPE.png.
"""

import argparse
import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import torchrun_main
from peft_pretraining.run_folder.layout import METRICS

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "data" / "replay"
UPDATES = 200


@dataclass(frozen=True)
class Replay:
    """losses and lrs of this product and of the recorded run, update by update; evaluations by update."""

    name: str
    losses: list[float]
    recorded: list[float]
    lrs: list[float]
    recorded_lrs: list[float]
    evaluations: dict[int, float]
    recorded_evaluations: dict[int, float]
    rerun_deviation: float | None

    @property
    def deviation(self) -> float:
        """Largest relative deviation of the training loss."""
        return max(abs(a / b - 1) for a, b in zip(self.losses, self.recorded, strict=True))


@cache
def recorded_runs() -> dict[str, dict[str, Any]]:
    """dtype -> label -> the recorded run."""
    return json.loads((RECORDED / "runs.json").read_text())


def flags(dtype: str, label: str, folder: Path, initial: str | None) -> list[str]:
    """The command line of a replay."""
    sequences = 16 if dtype.endswith("accumulation2") else 8
    model = ["--init_from", initial] if initial else ["--model_config", str(RECORDED / "config.json")]
    text = (
        f"--dataset {RECORDED} --tokenizer {RECORDED}/tokenizer --dtype {dtype.split('_')[0]} --max_length 64 "
        f"--batch_size 8 --total_batch_size {sequences} --num_training_steps {UPDATES} --warmup_steps 20 "
        "--scheduler cosine --min_lr_ratio 0.1 --workers 0 --lanes 1 --shuffle_block 1 --eval_every 50 --seed 0 "
        f"--protocol published --device cpu --single_gpu --wandb_mode disabled --save_every {UPDATES} "
        f"--save_dir {folder}"
    )
    return [*model, *text.split(), *shlex.split(recorded_runs()[dtype][label]["flags"])]


def replay(
    dtype: str, label: str, stop: int = UPDATES, further: Sequence[str] = (), initial: str | None = None
) -> Replay:
    """One run, made again up to an update. Raises RuntimeError where it ends badly."""
    run = recorded_runs()[dtype][label]
    torch.set_num_threads(1)  # as the recorded runs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        words = flags(dtype, label, place, initial)
        if stop < UPDATES:
            words += ["--stop_at", str(stop)]
        status = torchrun_main.main([*words, *further])
        if status:
            raise RuntimeError(f"{label}: exit status {status}")
        lines = [json.loads(line) for line in (place / METRICS).read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    ours = {line["update_step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    theirs = {update: loss for update, loss in run["evaluation"] if update in ours}
    count = min(len(trained), len(run["loss"]))
    return Replay(
        label,
        [line["loss"] for line in trained][:count],
        run["loss"][:count],
        [line["lr"] for line in trained][:count],
        run["lr"][:count],
        {update: ours[update] for update in theirs},
        theirs,
        run["rerun_deviation"],
    )


def draw(replays: Sequence[Replay], path: Path, title: str) -> None:
    """The curves one on the other, and the deviation below, a column for each run."""
    import matplotlib.pyplot as plt

    columns = min(4, len(replays))
    rows = -(-len(replays) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(3.2 * columns, 3.6 * rows), squeeze=False, sharex=True)
    for number, one in enumerate(replays):
        above, below = (axes[2 * (number // columns) + part][number % columns] for part in (0, 1))
        updates = range(1, len(one.losses) + 1)
        above.plot(updates, one.recorded, color="0.7", linewidth=3, label="released")
        above.plot(updates, one.losses, color="C0", linewidth=0.8, label="this project")
        above.set_title(one.name, fontsize=9)
        deviations = [abs(a / b - 1) for a, b in zip(one.losses, one.recorded, strict=True)]
        below.semilogy(updates, [max(d, 1e-9) for d in deviations], color="C0", linewidth=0.8)
        if one.rerun_deviation:
            below.axhline(one.rerun_deviation, color="0.5", linestyle="--", linewidth=0.8)
        below.set_ylim(1e-9, 1)
        if number % columns == 0:
            above.set_ylabel("training loss")
            below.set_ylabel("relative deviation")
    for spare in range(len(replays), rows * columns):
        for part in (0, 1):
            axes[2 * (spare // columns) + part][spare % columns].axis("off")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("update", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=recorded_runs(), default="float32")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--stop", type=int, default=UPDATES, metavar="N")
    arguments = parser.parse_args()
    names = arguments.only or list(recorded_runs()[arguments.dtype])
    replays = []
    for name in names:
        replays.append(replay(arguments.dtype, name, arguments.stop))
        last = replays[-1]
        itself = "not recorded" if last.rerun_deviation is None else f"{last.rerun_deviation:.1e}"
        print(f"{name:<22} deviation {last.deviation:.1e}, the released harness from itself {itself}", flush=True)
    place = ROOT / "benchmarks" / "results" / f"replay_{arguments.dtype}.json"
    found = {
        one.name: {
            "deviation": one.deviation,
            "rerun_deviation": one.rerun_deviation,
            "final_loss": one.losses[-1],
            "recorded_final_loss": one.recorded[-1],
            "evaluations": one.evaluations,
            "recorded_evaluations": one.recorded_evaluations,
        }
        for one in replays
    }
    place.write_text(json.dumps(found, indent=1) + "\n")
    draw(replays, ROOT / "docs" / "figures" / f"replay_{arguments.dtype}.png", f"200 updates, {arguments.dtype}")


if __name__ == "__main__":
    main()
