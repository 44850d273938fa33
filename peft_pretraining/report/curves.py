"""Curves over a run: means over seeds, few enough points to draw, against updates, tokens or time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_pretraining.report.runs import RunRecord

_POINTS = 200
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """x: updates, tokens or seconds. mean, low, high: over seeds, of means over stretches of the run."""

    x: Values
    mean: Values
    low: Values
    high: Values

    def known(self) -> tuple[Values, Values]:
        """x and mean where there is one: columns that not every update has leave gaps."""
        there = ~np.isnan(self.mean)
        return self.x[there], self.mean[there]


def progress(run: RunRecord, axis: str) -> Values:
    """x of every update of a run: its number, tokens seen, or seconds spent in updates so far."""
    if axis == "updates":
        return _column(run, "update_step")
    if axis == "tokens":
        return _column(run, "tokens_seen")
    return np.cumsum(_column(run, "step_seconds"))


def training_curve(runs: Sequence[RunRecord], key: str, axis: str) -> Curve | None:
    """The mean over runs of a column of their metrics, as far as all of them have come; None without numbers."""
    length = min(len(run.updates) for run in runs)
    if length == 0:
        return None
    values = np.stack([_column(run, key)[:length] for run in runs])
    x = np.stack([progress(run, axis)[:length] for run in runs]).mean(0)
    if np.isnan(values).all():
        return None
    count = min(length, _POINTS)
    starts = np.arange(count) * (length // count) + np.minimum(np.arange(count), length % count)
    stretches = _nan_mean_of_stretches(values, starts)
    return Curve(
        x=_nan_mean_of_stretches(x, starts),
        mean=_nan_mean(stretches, axis=0),
        low=stretches.min(0),
        high=stretches.max(0),
    )


def evaluation_curve(runs: Sequence[RunRecord], axis: str) -> tuple[Values, Values]:
    """x and the mean evaluation loss over runs, for the updates that all of them evaluated."""
    losses = [{r["update_step"]: r["eval_loss"] for r in run.evaluations if r["eval_loss"] is not None} for run in runs]
    shared = sorted(set.intersection(*(set(found) for found in losses)))
    positions = [dict(zip(_column(run, "update_step"), progress(run, axis), strict=True)) for run in runs]
    shared = [update for update in shared if all(update in found for found in positions)]
    x = np.array([np.mean([found[update] for found in positions]) for update in shared])
    return x, np.array([np.mean([found[update] for found in losses]) for update in shared])


def phases(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Median seconds of each part of an update; `rest` is what the parts do not cover."""
    updates = [record for run in runs for record in run.updates[len(run.updates) // 10 :]]
    names = [key for key in updates[0] if key.endswith("_seconds") and key != "step_seconds"] if updates else []
    found = {name.removesuffix("_seconds"): _median(updates, name) for name in names}
    rest = _median(updates, "step_seconds") - sum(found.values()) if updates else 0.0
    return {**found, "rest": max(rest, 0.0)} if found else {}


def detail_names(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Columns named KIND/PART, as --log_details writes them: parts by kind."""
    kinds: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in runs for record in run.updates for key in record):
        kind, slash, part = key.partition("/")
        if slash:
            kinds.setdefault(kind, []).append(part)
    return kinds


def _median(updates: Sequence[dict[str, float]], name: str) -> float:
    return float(np.median([record[name] for record in updates if name in record]))


def _column(run: RunRecord, key: str) -> Values:
    """Missing and null values become NaN."""
    return np.array([record.get(key) for record in run.updates], dtype=np.float64)


def _nan_mean_of_stretches(values: Values, starts: NDArray[np.int64]) -> Values:
    """Means over stretches of the last axis, each up to the start of the next; NaN for one without numbers."""
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0), starts, axis=-1)
    counts = np.add.reduceat(known.astype(np.int64), starts, axis=-1)
    return sums / np.where(counts > 0, counts, np.nan)


def _nan_mean(values: Values, axis: int) -> Values:
    """The mean of the numbers; NaN where there is none."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis) / np.where(known.any(axis), known.sum(axis), np.nan)
