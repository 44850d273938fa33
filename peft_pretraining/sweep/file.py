"""Reading a sweep's file (YAML, JSON or TOML) with every mistake named."""

import dataclasses
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.parser import nearest
from peft_pretraining.sweep.plan import Limits, Sweep, make_cells
from peft_pretraining.sweep.search import Search

_KEYS = ("folder", "flags", "methods", "grid", "seeds", "search", "limits", "slurm")
_OWN_FLAGS = ("save_dir", "continue_from", "seed", "name", "config", "single_gpu", "gpu")


def read_sweep(path: Path) -> Sweep:
    """The sweep that a file describes. Raises UsageError naming the file and the key."""
    try:
        content = _checked(_parsed(path))
        folder = Path(content.get("folder", f"runs/{path.stem}"))
        sweep = Sweep(path, make_cells(content, folder), _limits(content), content.get("slurm", {}))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    names = Counter(run.name for cell in sweep.cells for run in cell.next_runs({}))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UsageError(f"{path}: two runs are called {twice[0]}: give their methods different labels or settings")
    return sweep


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            return _yaml(text)
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix == ".json":
            return json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"is no valid {path.suffix[1:].upper()} ({error})") from error
    raise UsageError("give a .yaml, .json or .toml file")


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _checked(content: Any) -> dict[str, Any]:
    """The content, of the right shape throughout."""
    _mapping("the file", content, _KEYS)
    for key in ("flags", "methods", "grid", "search", "limits", "slurm"):
        if key in content:
            _mapping(key, content[key])
    if not content.get("methods"):
        raise UsageError("methods: name at least one, as in `methods: {NAME: {lr: [1e-3, 3e-3]}}`")
    filled = {**content, "flags": content.get("flags") or {}}
    filled["methods"] = {str(label): own or {} for label, own in content["methods"].items()}
    for label, own in filled["methods"].items():
        _mapping(f"methods.{label}", own)
    for where, flags in [("flags", filled["flags"]), ("grid", content.get("grid", {})), *filled["methods"].items()]:
        _check_flags(where, flags)
    if any(isinstance(value, list) for value in filled["flags"].values()):
        raise UsageError("flags: one value each; lists belong into grid or methods")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"seeds: {seeds!r} is no list of whole numbers")
    _check_search(content.get("search", {}))
    return filled


def _mapping(where: str, value: Any, keys: Sequence[str] | None = None) -> None:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected keys and values, found {value!r}")
    for key in value:
        if keys is not None and key not in keys:
            raise UsageError(f"{where}: {key!r} is no key{nearest(str(key), keys) or '; one of ' + ', '.join(keys)}")


def _check_flags(where: str, flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if name in _OWN_FLAGS:
            raise UsageError(f"{where}: {name} is set by the sweep itself; leave it out (seeds have their own key)")
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(item, str | int | float) for item in values):
            raise UsageError(f"{where}.{name}: {value!r} is no value of a flag")


def _check_search(search: Mapping[str, Any]) -> None:
    _mapping("search", search, [field.name for field in dataclasses.fields(Search)])
    budget, factor = search.get("budget", 5), search.get("factor", 2.0)
    if type(budget) is not int or budget < 1:
        raise UsageError(f"search.budget: {budget!r} is no number of runs")
    if factor is not None and (not isinstance(factor, int | float) or factor <= 1):
        raise UsageError(f"search.factor: {factor!r}; give a number above 1")


def _limits(content: Mapping[str, Any]) -> Limits:
    given = dict(content.get("limits", {}))
    _mapping("limits", given, [field.name for field in dataclasses.fields(Limits)])
    for name in ("jobs", "processes", "threads"):
        if name in given and (type(given[name]) is not int or given[name] < 1):
            raise UsageError(f"limits.{name}: {given[name]!r}; give a whole number from 1")
    gpus = given.pop("gpus", [])
    if not isinstance(gpus, list) or not all(type(gpu) is int and gpu >= 0 for gpu in gpus):
        raise UsageError(f"limits.gpus: {gpus!r} is no list of device indices")
    return Limits(**given, gpus=tuple(gpus))
