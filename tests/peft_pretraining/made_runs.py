"""Run folders with made-up metrics: real files, and losses whose statistics a test can work out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from peft_pretraining.cli.parse import parse_config
from tests.tiny_runs import ROOT

UPDATES = 40


def flags(*more: str) -> list[str]:
    """The flags of a made-up run; `more` wins."""
    model = str(ROOT / "configs/llama_9m.json")
    return ["--model_config", model, "--dataset", "builtin", "--num_training_steps", str(UPDATES), *more]


def make_run(
    folder: Path,
    *more: str,
    loss: float | None = 4.0,
    done: int = UPDATES,
    method: str | None = None,
    details: Sequence[str] = (),
) -> Path:
    """A run whose training loss falls from 9 to `loss`, also its final evaluation loss; None is a diverged one."""
    import numpy

    folder.mkdir(parents=True)
    config = parse_config(flags(*more))
    (folder / "run.json").write_text(json.dumps(config.to_dict()))
    if method is not None:
        (folder / "sweep.json").write_text(json.dumps({"method": method}))
    lines: list[dict[str, Any]] = []
    for update in range(1, done + 1):
        lines.append(update_line(update, loss) | {f"{name}": update / (1 + i) for i, name in enumerate(details)})
        if update % 20 == 0 and loss is not None:
            value = 9 + (loss - 9) * update / UPDATES
            lines.append({"update_step": update, "eval_loss": value, "eval_bits_per_byte": value / 3, "eval_tokens": 9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = folder / f"model_{done}" / "training_state"
    state.mkdir(parents=True)
    save_file({"a": numpy.zeros((10, 5), "float32"), "b": numpy.zeros(7, "int8")}, state / "shard.safetensors")
    return folder


def update_line(update: int, loss: float | None) -> dict[str, Any]:
    return {
        "update_step": update,
        "loss": None if loss is None else 9 + (loss - 9) * update / UPDATES,
        "lr": 0.1,
        "grad_norm": 1 / update,
        "tokens_seen": 100 * update,
        "tokens_per_second": 50.0,
        "step_seconds": 2.0,
        "data_seconds": 0.1,
        "forward_seconds": 0.5,
        "backward_seconds": 1.0,
        "optimizer_seconds": 0.2,
        "peak_memory_mib": 300.0,
    }
