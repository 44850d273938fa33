"""Which runs are compared: tasks, the methods (arms) within a task, and each method's chosen learning rate."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.report.runs import RunRecord
from peft_pretraining.tracking.config import LoggingConfig

# What two runs must share to be compared at all.
TASK = (
    "model_config",
    "dataset",
    "dataset_revision",
    "text_column",
    "tokenizer",
    "max_length",
    "packing",
    "total_batch_size",
    "num_training_steps",
    "evaluation",
    "eval_tokens",
)
# What does not tell one method from another: where and how a run is carried out.
_INCIDENTAL = {
    *(field.name for kind in (CheckpointConfig, LoggingConfig, ParallelConfig) for field in fields(kind)),
    *("workers", "data_timeout", "strict_data", "lanes", "shuffle_block", "skip_batches"),
    *("batch_size", "gradient_accumulation", "max_train_tokens", "eval_every"),
    *("max_bad_steps", "spike_window", "spike_zscore", "optimizer_file", "rounding_seed"),
}
_SEEDS = ("seed", "data_seed")


@dataclass(frozen=True)
class Arm:
    """A method on a task: runs that differ in learning rate and seed alone.

    runs: all of them. lr: the learning rate that is compared with other methods, the one with the lowest mean
    loss over the seeds that all its learning rates have; None where no run is finished.
    """

    label: str
    runs: tuple[RunRecord, ...]
    lr: float | None

    @property
    def chosen(self) -> list[RunRecord]:
        """The finished runs at the chosen learning rate, by seed."""
        return by_lr(self.runs).get(self.lr, []) if self.lr is not None else []

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of one of its runs at the chosen learning rate."""
        return (self.chosen or list(self.runs))[0].settings


@dataclass(frozen=True)
class Task:
    """What was to be learnt, and the methods that were tried on it."""

    settings: dict[str, Any]
    arms: tuple[Arm, ...]

    @property
    def title(self) -> str:
        s = self.settings
        rows = "packed rows" if s["packing"] else "rows"
        return (
            f"{model_name(s)} on {_stem(s['dataset'])}, {s['num_training_steps']:,} updates of "
            f"{s['total_batch_size']} {rows} of {s['max_length']} tokens"
        )


def model_name(settings: dict[str, Any]) -> str:
    """llama_60m from the path of the model's configuration."""
    return _stem(settings["model_config"] or settings["init_from"])


def by_lr(runs: Iterable[RunRecord]) -> dict[float, list[RunRecord]]:
    """Finished runs by learning rate, ascending, then by seed."""
    found: dict[float, list[RunRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.settings["lr"], run.settings["seed"])):
        if run.final is not None:
            found[run.settings["lr"]].append(run)
    return dict(found)


def final_loss(run: RunRecord) -> float:
    """Nats per token, of a finished run."""
    assert run.final is not None
    return run.final["eval_loss"]


def make_tasks(runs: Sequence[RunRecord]) -> list[Task]:
    """Sorts runs into tasks and arms. Order follows the runs."""
    groups: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
    for run in runs:
        # The same shape may be reached by different paths.
        key = tuple(model_name(run.settings) if flag == "model_config" else run.settings.get(flag) for flag in TASK)
        groups[key].append(run)
    return [Task({f: same[0].settings.get(f) for f in TASK}, _make_arms(same)) for same in groups.values()]


def _make_arms(runs: Sequence[RunRecord]) -> tuple[Arm, ...]:
    groups: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[(_name(run), tuple(sorted(_own(run).items(), key=lambda item: item[0])))].append(run)
    names = [name for name, _ in groups]
    arms = []
    for (name, settings), members in groups.items():
        rivals = [dict(other) for other_name, other in groups if other_name == name]
        label = name if names.count(name) == 1 else f"{name} ({_distinction(dict(settings), rivals)})"
        arms.append(Arm(label, tuple(members), _choose_lr(members)))
    return tuple(arms)


def _name(run: RunRecord) -> str:
    return run.method or run.settings["optimizer"]


def _own(run: RunRecord) -> dict[str, Any]:
    """The settings that make a method what it is."""
    shared = {*TASK, *_INCIDENTAL, *_SEEDS, "lr"}
    return {flag: value for flag, value in run.settings.items() if flag not in shared}


def _distinction(settings: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    varied = [flag for flag in settings if len({str(rival.get(flag)) for rival in rivals}) > 1]
    return ", ".join(f"{flag} {settings[flag]}" for flag in varied)


def _choose_lr(runs: Sequence[RunRecord]) -> float | None:
    found = by_lr(runs)
    if not found:
        return None
    seeds = [{run.settings["seed"] for run in same} for same in found.values()]
    common = set.intersection(*seeds)

    def mean_loss(lr: float) -> float:
        return fmean(final_loss(run) for run in found[lr] if not common or run.settings["seed"] in common)

    return min(found, key=mean_loss)


def _stem(path: Any) -> str:
    return Path(str(path)).stem
