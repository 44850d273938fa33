"""metrics.jsonl: one line per update and per evaluation, none lost or doubled however often a run resumes."""

import contextlib
import json
import math
import resource
from pathlib import Path
from typing import IO, Any

import torch

from peft_pretraining.atomic_write import write_atomically
from peft_pretraining.units import MIB

Record = dict[str, Any]
_MOST = 2**53  # no update and no loss is larger; larger whole numbers are no floats


class MetricsFile:
    """metrics.jsonl, written line by line, so that a killed run loses none that came before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def continue_after(self, update: int, history: Path | None = None, evaluated: bool = True) -> None:
        """Opens the file without what a run that went further than `update` wrote, and without a cut last
        line.

        evaluated: whether the evaluation after `update` is done, or will be made once more and written then.
        history: the metrics of the run that is continued in another folder; taken over where there are none
        yet.
        """
        source = self._path if self._path.exists() or history is None else history
        kept = [line for line in _complete_lines(source) if _update_of(line) <= update]
        if not evaluated:
            kept = [line for line in kept if _update_of(line) < update or "eval_loss" not in json.loads(line)]
        write_atomically(self._path, "".join(kept))
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, record: Record) -> None:
        """Appends a line; numbers that JSON lacks become null."""
        assert self._file is not None
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")

    def close(self) -> None:
        """What a full disk did not take has been reported when it was written."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line for line in file if line.endswith("\n")]


def _update_of(line: str) -> float:
    """The update of a line; infinite, so never kept, where it is no record."""
    try:
        record = json.loads(line)
        update, losses = record["update_step"], [record.get(name) for name in ("loss", "eval_loss")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return math.inf
    whole = type(update) is int and 0 <= update < _MOST
    usable = whole and all(loss is None or (type(loss) in (int, float) and not abs(loss) > _MOST) for loss in losses)
    return update if usable else math.inf


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics.jsonl, in order; lines that are none are left out."""
    return [json.loads(line) for line in _complete_lines(path) if math.isfinite(_update_of(line))]


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far in MiB: CUDA's allocator, or this process's resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
