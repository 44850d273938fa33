"""Runs as a report sees them: read from their folders, and nothing else."""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_pretraining.data.config import DEFAULT_HUB_TOKENIZER
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import CONFIGURATION, LABEL, METRICS, STATE_FOLDER, SUMMARY, RunFolder
from peft_pretraining.tracking.metrics import Record, read_metrics

_BITS = {"F64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I64": 64, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8}


@dataclass(frozen=True)
class RunRecord:
    """A run. settings: every flag with its value. method: the label a sweep gave it. updates, evaluations:
    lines of metrics.jsonl. state_bytes: of the optimizer's tensors; None where nothing tells."""

    folder: Path
    settings: dict[str, Any]
    method: str | None
    updates: list[Record]
    evaluations: list[Record]
    summary: dict[str, Any] = field(default_factory=dict)
    state_bytes: int | None = None

    @property
    def last_update(self) -> int:
        return self.updates[-1]["update_step"] if self.updates else 0

    @cached_property
    def final(self) -> Record | None:
        """The evaluation after the last update; None for a run that has not come so far."""
        last = self.evaluations[-1] if self.evaluations else {}
        finished = self.last_update == self.settings["num_training_steps"] == last.get("update_step")
        return last if finished and last.get("eval_loss") is not None else None


def find_runs(paths: Iterable[Path]) -> list[RunRecord]:
    """Every run in these folders and below, in the order of their names. Raises UsageError where there is none."""
    found: dict[Path, RunRecord] = {}
    for path in paths:
        files = sorted(path.rglob(METRICS)) if path.is_dir() else []
        folders = [file.parent for file in files if (file.parent / CONFIGURATION).exists()]
        if not folders:
            raise UsageError(
                f"{path}: no run there (a run folder has {CONFIGURATION} and {METRICS}); give the --save_dir of a "
                "run, or a folder that holds several"
            )
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = read_run(folder)
    return list(found.values())


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. Raises UsageError where a file of it is damaged."""
    sections = _read(folder / CONFIGURATION)
    settings = {flag: value for values in sections.values() for flag, value in values.items()}
    if settings.get("tokenizer") is None:
        settings["tokenizer"] = "builtin" if settings["dataset"] == "builtin" else DEFAULT_HUB_TOKENIZER
    records = read_metrics(folder / METRICS)
    summary = _read(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    return RunRecord(
        folder=folder,
        settings=settings,
        method=_read(folder / LABEL).get("method") if (folder / LABEL).exists() else None,
        updates=[record for record in records if "loss" in record],
        evaluations=[record for record in records if "eval_loss" in record],
        summary=summary,
        state_bytes=summary.get("optimizer_state_bytes") or _state_bytes(folder),
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from error


def _state_bytes(folder: Path) -> int | None:
    """Bytes of the optimizer's tensors in the newest checkpoint, from the headers of its files."""
    checkpoints = RunFolder(folder).checkpoints()
    files = sorted((checkpoints[0][1] / STATE_FOLDER).glob("*.safetensors")) if checkpoints else []
    return sum(map(_tensor_bytes, files)) if files else None


def _tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: a length of 8 bytes, a JSON header, then the tensors."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for size in tensor["shape"]:
                elements *= size
            total += elements * _BITS[tensor["dtype"]] // 8
    return total
