"""Flags that set defaults of others: --protocol and --init_from. What is typed, or saved with a run, still wins."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PUBLISHED, TUNED = "published", "tuned"

_SHARED: dict[str, dict[str, Any]] = {
    # What the harnesses of the papers did, right or wrong: docs/replays.md shows this product following their runs.
    PUBLISHED: {"warmup_from_zero": True, "micro_batch_means": True, "evaluation": "published"},
    # What comparisons of optimizers call good practice.
    TUNED: {"min_lr_ratio": 0.0, "grad_clipping": 1.0},
}
_OF_METHOD: dict[str, dict[str, Any]] = {
    PUBLISHED: {"weight_rounding": "nearest", "state_rounding": "nearest"},
    TUNED: {"weight_decay": 0.1, "beta2": 0.95},
}


def with_initial_tokenizer(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are given; weights to start from bring the tokenizer that they were trained with."""
    source = given.get("init_from")
    if source is None or "tokenizer" in given or (Path(source).is_dir() and not _has_tokenizer(Path(source))):
        return dict(given)
    return {"tokenizer": source, **given}


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def with_protocol(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are given, with those that --protocol adds for every method."""
    added = dict(_SHARED.get(given.get("protocol") or "", {}))
    if given.get("scheduler") == "constant":
        added.pop("min_lr_ratio", None)
    return {**added, **given}


def of_method(given: Mapping[str, Any], usable: Collection[str]) -> dict[str, Any]:
    """The flags of the method that --protocol adds, as far as this method has them."""
    added = _OF_METHOD.get(given.get("protocol") or "", {})
    return {name: value for name, value in added.items() if name in usable}
