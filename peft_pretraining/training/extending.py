"""What becomes of the learning rate when a run goes on with another schedule, or for longer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from loguru import logger

from peft_pretraining.errors import UsageError
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.schedule import ScheduleConfig, build_schedule

_RISE = 1.05  # what a schedule adds in an update of its own is less


def say_how_lr_moves(saved: Mapping[str, Any], config: RunConfig, update: int) -> None:
    """Says from what to what the learning rate goes where a run continues on another schedule.

    saved: the configuration before, as `RunConfig.to_dict` gives it. update: the last one that was done.
    """
    try:
        names = {field.name for field in dataclasses.fields(ScheduleConfig)}
        before = ScheduleConfig(**{name: value for name, value in saved["schedule"].items() if name in names})
        steps, rate = int(saved["training"]["num_training_steps"]), float(saved["optimizer"]["lr"])
        old = rate * build_schedule(before, steps)(update)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError):
        return  # of another release, or damaged where nothing else reads it
    after, updates, base = config.schedule, config.training.num_training_steps, config.optimizer.lr
    if (before, steps, rate) == (after, updates, base) or update >= updates:
        return
    new = base * build_schedule(after, updates)(update + 1)
    logger.info("lr goes from {:.3g} at update {} to {:.3g} at update {}", old, update, new, update + 1)
    if new > old * _RISE:
        logger.warning(
            "lr rises, because the schedule is stretched over {} updates. A run that may be extended is best trained "
            "with --scheduler wsd, and continued from a checkpoint before its decay (docs/checkpoints.md)",
            updates,
        )
