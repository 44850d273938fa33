"""The scores of several seeds: one JSON file and one table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peft_pretraining.atomic_write import write_atomically


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave. last and best: scores by "split metric", of the last epoch, and of the epoch whose first
    metric was best on the first split. majority: accuracy of always answering the most frequent label, or None."""

    seed: int
    epochs: float
    best_epoch: float
    last: dict[str, float]
    best: dict[str, float]
    majority: float | None
    seconds: float


def write_results(path: Path, settings: Mapping[str, object], results: Sequence[SeedResult]) -> None:
    """Write settings and the results of all seeds as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": dict(settings), "seeds": [asdict(result) for result in results]}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def table(results: Sequence[SeedResult], *, percent: bool = True) -> str:
    """A line for each metric: mean and deviation over seeds of the last epoch and of the best one."""
    scale = 100.0 if percent else 1.0
    lines = [f"{'metric':<36} {'last epoch':>16} {'best epoch':>16}  seeds"]
    for name in results[0].last:
        last, best = ([getattr(r, which)[name] for r in results] for which in ("last", "best"))
        lines.append(f"{name:<36} {_spread(last, scale):>16} {_spread(best, scale):>16}  {len(results)}")
    if results[0].majority is not None:
        lines.append(f"{'most frequent label, accuracy':<36} {100 * results[0].majority:>16.2f}")
    return "\n".join(lines)


def _spread(values: Sequence[float], scale: float) -> str:
    digits = 2 if scale > 1 else 4
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean + (f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
