"""Learning-rate schedules: pure functions of the update, so that a resumed run needs no schedule state.

Updates count from 1 to N. Warm-up climbs from 1 / (W + 1) of the base rate to the base rate itself, reached
at update W + 1; the decay is evaluated at the N - W updates that follow, the first of them undecayed. So the
first update always moves the weights, none is spent at a rate of zero, and N updates cover the curve once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag

SCHEDULERS = ("linear", "cosine", "cosine_restarts", "constant", "wsd")
_COSINE_FLOOR = 0.1
_LOWEST = {"warmup_steps": 0, "cycle_length": 1, "restart_warmup_steps": 0, "decay_steps": 1}


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run."""

    _argument_group_name: ClassVar[str] = "learning-rate schedule"

    scheduler: str = flag("cosine", choices=SCHEDULERS, help="shape; wsd is warm-up, stable, decay")
    warmup_steps: int | None = flag(None, help="updates of linear warm-up (default: a tenth of the run)")
    min_lr_ratio: float | None = flag(
        None, help="final learning rate over --lr (default: 0.1 for the cosines, 0 for linear and wsd)"
    )
    cycle_length: int | None = flag(None, help="updates between the restarts of cosine_restarts")
    restart_warmup_steps: int | None = flag(
        None, help="updates of warm-up after each restart (default: a tenth of --cycle_length)"
    )
    decay_steps: int | None = flag(None, help="updates of wsd's final decay (default: a fifth of the run)")
    warmup_from_zero: bool = flag(
        False, help="spend the first update of a warm-up at a learning rate of 0, as the published harnesses do"
    )

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name} {value}: give a number of updates of at least {low}")
        if self.min_lr_ratio is not None and not 0 <= self.min_lr_ratio <= 1:
            raise UsageError(f"--min_lr_ratio {self.min_lr_ratio}: give a share of --lr from 0 to 1")
        if self.scheduler == "cosine_restarts" and self.cycle_length is None:
            raise UsageError("--scheduler cosine_restarts needs --cycle_length, the updates a cycle lasts")
        self._refuse_flags_of_other_schedules()

    def _refuse_flags_of_other_schedules(self) -> None:
        for name, only in (
            ("cycle_length", ("cosine_restarts",)),
            ("restart_warmup_steps", ("cosine_restarts",)),
            ("decay_steps", ("wsd",)),
            ("min_lr_ratio", ("linear", "cosine", "cosine_restarts", "wsd")),
        ):
            if getattr(self, name) is not None and self.scheduler not in only:
                raise UsageError(
                    f"--{name} has no meaning for --scheduler {self.scheduler}: "
                    f"leave it out or choose --scheduler {' or '.join(only)}"
                )


@dataclass(frozen=True)
class Schedule:
    """Calling it with an update (1 to `updates`) gives the factor of the base learning rate, in (0, 1]; in [0, 1] with
    --warmup_from_zero."""

    shape: Callable[[int], float]
    updates: int

    def __call__(self, update: int) -> float:
        if not 1 <= update <= self.updates:
            raise ValueError(f"update {update} is outside the schedule of {self.updates} updates")
        return self.shape(update - 1)


def build_schedule(config: ScheduleConfig, updates: int) -> Schedule:
    """The schedule of a run of `updates` updates. Raises UsageError where a phase does not fit."""
    warmup = updates // 10 if config.warmup_steps is None else config.warmup_steps
    if warmup >= updates:
        raise UsageError(f"--warmup_steps {warmup} fills all {updates} updates: lower it or train longer")
    floor = config.min_lr_ratio
    if floor is None:
        floor = _COSINE_FLOOR if config.scheduler in ("cosine", "cosine_restarts") else 0.0
    after_warmup = _after_warmup(config, updates, warmup, floor)

    ahead = 0 if config.warmup_from_zero else 1

    def shape(step: int) -> float:
        return (step + ahead) / (warmup + ahead) if step < warmup else after_warmup(step)

    return Schedule(shape, updates)


def _after_warmup(config: ScheduleConfig, updates: int, warmup: int, floor: float) -> Callable[[int], float]:
    if config.scheduler == "cosine_restarts":
        return _restarts(config, updates, warmup, floor)
    if config.scheduler == "wsd":
        length = _decay_length(config, updates, warmup)
        return lambda step: linear_decay(max(0, step - (updates - length)), length, floor)
    if config.scheduler == "linear":
        return lambda step: linear_decay(step - warmup, updates - warmup, floor)
    if config.scheduler == "cosine":
        return lambda step: cosine_decay(step - warmup, updates - warmup, floor)
    return lambda step: 1.0


def linear_decay(step: int, length: int, floor: float) -> float:
    """The straight line from 1 at step 0 to `floor` at step `length`."""
    return floor + (1 - floor) * (1 - step / length)


def cosine_decay(step: int, length: int, floor: float) -> float:
    """Half a cosine wave from 1 at step 0 to `floor` at step `length`."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / length))


def _decay_length(config: ScheduleConfig, updates: int, warmup: int) -> int:
    length = max(1, updates // 5) if config.decay_steps is None else config.decay_steps
    if warmup + length > updates:
        raise UsageError(
            f"--decay_steps {length} after a warm-up of {warmup} updates exceed {updates}: lower one of them"
        )
    return length


def _restarts(config: ScheduleConfig, updates: int, warmup: int, floor: float) -> Callable[[int], float]:
    """One cosine over the run, left every `cycle_length` updates for a climb from near zero back onto it."""
    assert config.cycle_length is not None
    cycle = config.cycle_length
    rewarm = cycle // 10 if config.restart_warmup_steps is None else config.restart_warmup_steps
    if rewarm >= cycle:
        raise UsageError(f"--restart_warmup_steps {rewarm} is not below --cycle_length {cycle}: lower it")
    ahead = 0 if config.warmup_from_zero else 1
    if warmup > cycle:
        raise UsageError(f"--warmup_steps {warmup} outlasts the first cycle: lower it or raise --cycle_length {cycle}")

    def factor(step: int) -> float:
        since_restart = step % cycle
        if step >= cycle and since_restart < rewarm:
            target = min(step - since_restart + rewarm, updates - 1)
            return (since_restart + ahead) / (rewarm + ahead) * cosine_decay(target - warmup, updates - warmup, floor)
        return cosine_decay(step - warmup, updates - warmup, floor)

    return factor
