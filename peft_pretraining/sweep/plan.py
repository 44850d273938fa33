"""What a sweep consists of: cells, each a single run or a search, made from one small file."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError
from peft_pretraining.sweep.search import Search, at_edge, best_value, next_values

Settings = dict[str, Any]


@dataclass(frozen=True)
class RunSpec:
    """One run. settings: its flags without leading dashes. folder: its run folder."""

    method: str
    settings: Settings
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def arguments(self) -> list[str]:
        """The command line, without what only decides where and on how many processes it runs."""
        return [f"--{flag}={_word(value)}" for flag, value in self.settings.items()]


@dataclass(frozen=True)
class Cell:
    """A method in one combination of the grid, and the runs that belong to it.

    settings: flags of all its runs. named: those of them that the run's name states. search: None for a cell
    that is one run for each seed.
    """

    method: str
    folder: Path
    settings: Settings
    named: tuple[str, ...]
    seeds: tuple[int, ...]
    search: Search | None = None
    start: tuple[float, ...] = ()

    @property
    def expected_runs(self) -> int:
        return len(self.seeds) if self.search is None else self.search.budget + len(self.seeds) - 1

    def next_runs(self, losses: Mapping[str, float]) -> list[RunSpec]:
        """The runs that can start now, finished and running ones included; ever more, as results come in.

        losses: the final evaluation loss of every finished run, by name.
        """
        if self.search is None:
            return [self._run({}, seed) for seed in self.seeds]
        tried: dict[float, float] = {}
        runs: list[RunSpec] = []
        while values := next_values(self.search, self.start, tried):
            step = {value: self._run({self.search.flag: value}, self.seeds[0]) for value in values}
            runs += step.values()
            if any(run.name not in losses for run in step.values()):
                return runs
            tried |= {value: losses[run.name] for value, run in step.items()}
        best = best_value(tried)
        if math.isfinite(tried[best]):
            runs += [self._run({self.search.flag: best}, seed) for seed in self.seeds[1:]]
        return runs

    def searched(self, losses: Mapping[str, float]) -> dict[float, float]:
        """The loss of every value of a search that has one."""
        if self.search is None:
            return {}
        first = [run for run in self.next_runs(losses) if run.settings["seed"] == self.seeds[0]]
        return {float(run.settings[self.search.flag]): losses[run.name] for run in first if run.name in losses}

    def verdict(self, losses: Mapping[str, float]) -> str | None:
        """A sentence on a finished search; None where there was none."""
        tried = self.searched(losses)
        if self.search is None or not tried:
            return None
        best = best_value(tried)
        if not math.isfinite(tried[best]):
            return f"{self.method}: every {self.search.flag} of {sorted(tried)} diverged; start lower"
        said = f"{self.method}: best {self.search.flag} {best:g} of {len(tried)} (loss {tried[best]:.4f})"
        if at_edge(tried):
            said += "; it lies at the edge of what was tried: raise search.budget, which all methods share"
        return said

    def _run(self, more: Settings, seed: int) -> RunSpec:
        settings = {**self.settings, **more, "seed": seed}
        named = dict.fromkeys([*self.named, *more, "seed"])
        words = [f"{flag}={_shown(settings[flag])}" for flag in named]
        return RunSpec(self.method, settings, self.folder / "-".join([self.method, *words]))


@dataclass(frozen=True)
class Limits:
    """What may be used at once. jobs: runs side by side (None: as many as the cores allow). processes: of a
    run. threads: of a process. gpus: device indices that runs take in turn; empty leaves the choice to them."""

    jobs: int | None = None
    processes: int = 1
    threads: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. slurm: options of sbatch for array scripts."""

    file: Path
    cells: list[Cell]
    limits: Limits
    slurm: dict[str, Any] = field(default_factory=dict)


def make_cells(content: Mapping[str, Any], folder: Path) -> list[Cell]:
    """The cells that a sweep file describes. Raises UsageError."""
    search = Search(**content["search"]) if "search" in content else None
    seeds, cells = tuple(content.get("seeds", (0,))), []
    for method, own in content["methods"].items():
        varied = {**content.get("grid", {}), **own}
        start = _start_values(method, varied, content["flags"], search)
        for settings in _combinations(content["flags"], varied):
            settings.setdefault("optimizer", method)
            named = tuple(flag for flag, value in varied.items() if isinstance(value, list) and flag in settings)
            cells += _cells(Cell(method, folder, settings, named, seeds, search, start))
    return cells


def _cells(cell: Cell) -> list[Cell]:
    """Seeds of a grid are cells of their own, so that a Slurm array runs them side by side."""
    if cell.search is not None:
        return [cell]
    return [Cell(cell.method, cell.folder, cell.settings, cell.named, (seed,)) for seed in cell.seeds]


def _start_values(method: str, varied: Settings, flags: Mapping[str, Any], search: Search | None) -> tuple[float, ...]:
    """Takes the searched flag's values out of what is varied."""
    if search is None:
        return ()
    values = varied.pop(search.flag, flags.get(search.flag))
    where = f"methods.{method}.{search.flag}"
    try:
        start = tuple(float(value) for value in (values if isinstance(values, list) else [values]))
    except (TypeError, ValueError):
        raise UsageError(f"{where}: the search needs numbers to start from, such as [1e-3, 3e-3, 1e-2]") from None
    if not start or min(start) <= 0 or len(set(start)) != len(start):
        raise UsageError(f"{where}: the search needs different positive numbers to start from")
    if len(start) > search.budget:
        raise UsageError(f"{where}: {len(start)} values, but search.budget is {search.budget}: raise it")
    return start


def _combinations(flags: Mapping[str, Any], varied: Settings) -> Iterator[Settings]:
    choices = [value if isinstance(value, list) else [value] for value in varied.values()]
    for values in itertools.product(*choices):
        yield {**flags, **dict(zip(varied, values, strict=True))}


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    """The value in a folder's name: numbers in one spelling, paths by their stem."""
    try:
        return f"{float(value):g}" if not isinstance(value, bool) else str(value).lower()
    except (TypeError, ValueError):
        return Path(str(value)).stem
