"""Runs beside published figures: side by side only where the protocol is the same, differences named otherwise."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_pretraining.published import Result, own_baseline, protocols, published_names, results
from peft_pretraining.reports.arms import model_name
from peft_pretraining.reports.comparison import Row
from peft_pretraining.reports.tables import Table

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])$", re.IGNORECASE)
_NAMES = {
    "dataset": "dataset",
    "tokenizer": "tokenizer",
    "max_length": "tokens a row",
    "packing": "packing",
    "total_batch_size": "rows an update",
    "eval_tokens": "evaluation tokens",
}


@dataclass(frozen=True)
class Pair:
    """A measured row and a published figure of the same method. differences: why they are not comparable; empty
    where they are. baseline: the figure that the same paper gives for its full-rank baseline."""

    row: Row
    result: Result
    differences: tuple[str, ...]
    baseline: Result | None


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Every row with the published perplexities of its method: those of its model size, or else the nearest one."""
    found = []
    for row in rows:
        own = [_pair(row, result) for result in _of_method(row.arm.settings)]
        same_size = [pair for pair in own if pair.result.model == model_size(row.arm.settings)]
        found += sorted(same_size or own, key=lambda p: len(p.differences))[: None if same_size else 1]
    return found


def _pair(row: Row, result: Result) -> Pair:
    return Pair(row, result, tuple(differences(row.arm.settings, result)), own_baseline(result))


def model_size(settings: dict[str, Any]) -> str:
    """60M or 1B, from the name of the model's configuration; the whole name where it has no size."""
    name = model_name(settings)
    match = _SIZE.search(name)
    return f"{match[1]}{match[2].upper()}" if match else name


def differences(settings: dict[str, Any], result: Result) -> list[str]:
    """Why a run with these flags cannot stand beside a published perplexity, in words; empty where it can."""
    protocol = protocols()[result.protocol] if result.protocol else {}
    said = []
    if model_size(settings) != result.model:
        said.append(f"model {model_size(settings)}, published {result.model}")
    if protocol.get("quantity") != "validation":
        said.append(f"published: {protocol.get('quantity') or 'not stated whether training or validation'} perplexity")
    said += [
        text
        for flag, name in _NAMES.items()
        if (text := _difference(name, settings[flag], protocol.get(flag))) is not None
    ]
    said += _evaluation(settings["evaluation"], protocol.get("evaluation"))
    said += _length(settings, result)
    for flag, value in (("lr", result.lr), ("rank", result.rank)):
        if value is not None and settings.get(flag) is not None and not math.isclose(settings[flag], value):
            said.append(f"{flag} {settings[flag]:g}, published {value:g}")
    return said


def _difference(name: str, own: Any, published: Any) -> str | None:
    if published is None:
        return f"{name} {Path(str(own)).stem}, published: not stated"
    return None if own == published else f"{name} {Path(str(own)).stem}, published {published}"


def _evaluation(own: str, published: str | None) -> list[str]:
    if published is None:
        return ["evaluation: whether the published one is biased is not stated"]
    if own == published:
        return []
    return [f"evaluation {own}; the published one divides by one batch too many, so it is too low"]


def _length(settings: dict[str, Any], result: Result) -> list[str]:
    steps = settings["num_training_steps"]
    if result.steps is not None:
        return [] if steps == result.steps else [f"updates {steps:,}, published {result.steps:,}"]
    tokens = steps * settings["total_batch_size"] * settings["max_length"]
    if result.tokens is None:
        return [f"updates {steps:,}, published: not stated"]
    return (
        [] if math.isclose(tokens, result.tokens, rel_tol=0.05) else [f"tokens {tokens:,}, published {result.tokens:,}"]
    )


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
        if not pair.differences
    )
    columns = ("method", "measured", "published", "paper's own baseline", "published as", "source")
    note = "Same model, data, tokens, padding and (biased) evaluation. Hardware and software differ."
    return Table(f"{prefix}published", "Paper versus measured", columns, rows, note) if rows else None


def mismatch_table(found: Sequence[Pair], prefix: str) -> Table | None:
    """Published figures that must not be read beside the runs, with every reason."""
    rows = tuple(
        (
            pair.row.arm.label,
            f"{pair.result.paper}, {pair.result.method}, {pair.result.model}",
            "; ".join(pair.differences),
            f"{pair.result.value:g}",
            _own(pair),
            _source(pair.result),
        )
        for pair in found
        if pair.differences
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
