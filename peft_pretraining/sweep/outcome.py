"""What became of a run, read from its folder alone, so that a sweep goes on where it was stopped."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import CONFIGURATION, METRICS, SUMMARY
from peft_pretraining.tracking.metrics import read_metrics
from peft_pretraining.training.run_config import RunConfig

_TAIL = 1 << 14
_SAME_RESULT = {"checkpoint", "parallel", "logging"}  # sections that do not decide what a run finds
_SAME_RESULT_FLAGS = {"workers", "data_timeout", "eval_every", "activation_checkpointing", "compile_model"}


@dataclass(frozen=True)
class Outcome:
    """loss: the final evaluation loss; infinite where the run diverged; None while it is not finished."""

    loss: float | None

    @property
    def finished(self) -> bool:
        return self.loss is not None


def outcome_of(folder: Path, config: RunConfig) -> Outcome:
    """Reads the folder. Raises UsageError where it holds a run with other settings than `config`."""
    saved = folder / CONFIGURATION
    if not saved.exists():
        return Outcome(None)
    _check_same(folder, _read(saved), json.loads(json.dumps(config.to_dict())))
    summary = _read(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    if summary.get("updates") == config.training.num_training_steps:
        loss = summary.get("eval_loss")
        return Outcome(loss if loss is not None and math.isfinite(loss) else math.inf)
    return Outcome(math.inf if _gave_up(folder, config.training.max_bad_steps) else None)


def updates_done(folder: Path) -> int:
    """The last update in the run's metrics; only the end of the file is read."""
    path = folder / METRICS
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return int(json.loads(line)["update_step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def _gave_up(folder: Path, max_bad_steps: int) -> bool:
    """Whether the run ended because too many updates in a row had no finite loss or gradient.

    The update that is one too many ends the run before it is written.
    """
    updates = [record for record in read_metrics(folder / METRICS) if "loss" in record]
    last = updates[len(updates) - max_bad_steps :] if 0 < max_bad_steps <= len(updates) else []
    return bool(last) and all(record.get("skipped") for record in last)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): delete the folder to run it again") from error


def _check_same(folder: Path, saved: Any, wanted: dict[str, dict[str, Any]]) -> None:
    for section, values in wanted.items():
        if section in _SAME_RESULT:
            continue
        for flag, value in values.items():
            before = saved.get(section, {}).get(flag, value)
            if before != value and flag not in _SAME_RESULT_FLAGS:
                raise UsageError(
                    f"{folder} holds a run with --{flag} {before}, but the sweep asks for {value}: "
                    "give the sweep another folder, or delete that one"
                )
