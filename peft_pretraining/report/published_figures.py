"""Runs beside published figures: side by side only where the protocol is the same, differences named otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft_pretraining.report.comparison import Row
from peft_pretraining.report.protocol import Comparison, compare_settings, model_size
from peft_pretraining.report.published import Result, own_baseline, published_names, results
from peft_pretraining.report.tables import Table


@dataclass(frozen=True)
class Pair:
    """A measured row and a published figure of the same method. comparison: why they are not comparable; empty where
    they are. baseline: the figure that the same paper gives for its full-rank baseline."""

    row: Row
    result: Result
    comparison: Comparison
    baseline: Result | None


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Every row with the published perplexities of its method: those of its model size, or else the nearest one."""
    found = []
    for row in rows:
        own = [_pair(row, result) for result in _of_method(row.arm.settings)]
        same_size = [pair for pair in own if pair.result.model == model_size(row.arm.settings)]
        found += sorted(same_size or own, key=lambda p: len(p.comparison))[: None if same_size else 1]
    return found


def _pair(row: Row, result: Result) -> Pair:
    return Pair(row, result, compare_settings(row.arm.settings, result), own_baseline(result))


def _of_method(settings: dict[str, Any]) -> list[Result]:
    names = published_names(settings)
    return [r for r in results() if r.method in names and r.protocol and r.metric.endswith("perplexity")]


def comparison_table(found: Sequence[Pair], prefix: str) -> Table | None:
    """Runs whose protocol matches, beside the published figures."""
    rows = tuple(
        (
            pair.row.arm.label,
            f"{pair.row.perplexity:.2f}",
            f"{pair.result.value:g}",
            _own(pair),
            f"{pair.result.paper}, {pair.result.method}",
            _source(pair.result),
        )
        for pair in found
        if not pair.comparison
    )
    columns = ("method", "measured", "published", "paper's own baseline", "published as", "source")
    note = (
        "Same model, data, tokens, padding, schedule, settings and (biased) evaluation. Hardware, software and the "
        "precision of the optimizer's state may differ."
    )
    return Table(f"{prefix}published", "Paper versus measured", columns, rows, note) if rows else None


def mismatch_table(found: Sequence[Pair], prefix: str) -> Table | None:
    """Published figures that must not be read beside the runs, with every reason."""
    rows = tuple(
        (
            pair.row.arm.label,
            f"{pair.result.paper}, {pair.result.method}, {pair.result.model}",
            "; ".join(pair.comparison.sentences()),
            f"{pair.result.value:g}",
            _own(pair),
            _source(pair.result),
        )
        for pair in found
        if pair.comparison
    )
    columns = ("method", "published as", "what differs", "published", "paper's own baseline", "source")
    note = "These figures were measured in another way: the measured ones are not set beside them."
    return Table(f"{prefix}not-comparable", "Published, not comparable", columns, rows, note) if rows else None


def _own(pair: Pair) -> str:
    if pair.baseline is pair.result:
        return "is the baseline"
    return "–" if pair.baseline is None else f"{pair.baseline.value:g} ({pair.baseline.method})"


def _source(result: Result) -> str:
    again = "" if result.reported_by == "the paper" else ", run or quoted by another paper"
    return f"{result.source}{again}" + (f" ({result.note})" if result.note else "")
