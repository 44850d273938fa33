"""Published results of the methods, with their sources and protocols, and what they can be compared with.

results.csv holds a row a figure, as printed in the papers, their repositories, or papers that ran the method
again (`reported_by`). protocols.json says how models were trained and perplexities measured; null is what the source
does not state. methods.json says which optimizer and flags a published name means, and by paper, under `settings`,
the flags it was run with; a method's flag that is not there is not stated either.
"""

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Result:
    """A published figure. tokens and steps: training tokens, padding included, and updates. None: not stated.

    protocol: how it was measured, as in protocols.json; None for figures without one, such as memory.
    """

    paper: str
    reported_by: str
    method: str
    model: str
    metric: str
    unit: str
    value: float
    tokens: int | None
    steps: int | None
    rank: int | None
    lr: float | None
    protocol: str | None
    note: str
    source: str


@cache
def results() -> tuple[Result, ...]:
    """All published figures."""
    text = (files(__name__) / "results.csv").read_text(encoding="utf-8")
    return tuple(_result(row) for row in csv.DictReader(text.splitlines()))


@cache
def protocols() -> dict[str, dict[str, Any]]:
    """Settings and a description of each protocol, by name."""
    return _json("protocols.json")


@cache
def methods() -> list[dict[str, Any]]:
    """Entries with `optimizers`, `published` names and perhaps `flags`, the values these imply, and `settings`."""
    return _json("methods.json")["methods"]


def default_baseline() -> str:
    """The optimizer that others are compared with."""
    return _json("methods.json")["baseline"]


def published_names(settings: dict[str, Any]) -> list[str]:
    """What papers call the method of a run with these flags; the first entry that fits decides."""
    return _entry(settings).get("published", [])


def published_settings(settings: dict[str, Any], paper: str) -> dict[str, Any]:
    """Flags that a paper ran the method of this run with, as far as it states them; None is said not to be stated."""
    return _entry(settings).get("settings", {}).get(paper, {})


def _entry(settings: dict[str, Any]) -> dict[str, Any]:
    for entry in methods():
        flags = entry.get("flags", {})
        if settings["optimizer"] in entry["optimizers"] and all(settings.get(k) in v for k, v in flags.items()):
            return entry
    return {}


def own_baseline(result: Result) -> Result | None:
    """The figure of the same paper's full-rank baseline under the same protocol; None where it gives none."""
    for name in _json("methods.json")["paper_baselines"].get(result.paper, []):
        for other in results():
            same = (other.paper, other.reported_by, other.model, other.metric, other.protocol)
            wanted = (result.paper, result.reported_by, result.model, result.metric, result.protocol)
            if other.method == name and same == wanted and other.steps == result.steps:
                return other
    return None


@cache
def _json(name: str) -> Any:
    return json.loads((files(__name__) / name).read_text(encoding="utf-8"))


def _result(row: dict[str, str]) -> Result:
    return Result(
        paper=row["paper"],
        reported_by=row["reported_by"],
        method=row["method"],
        model=row["model"],
        metric=row["metric"],
        unit=row["unit"],
        value=float(row["value"]),
        tokens=int(row["tokens"]) if row["tokens"] else None,
        steps=int(row["steps"]) if row["steps"] else None,
        rank=int(row["rank"]) if row["rank"] else None,
        lr=float(row["lr"]) if row["lr"] else None,
        protocol=row["protocol"] or None,
        note=row["note"],
        source=row["source"],
    )
