"""Flags of checkpoints."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import Interval, flag


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run lives, how often it is saved and what it continues."""

    _argument_group_name: ClassVar[str] = "checkpoints"

    save_dir: str | None = flag(None, help="run folder (default: runs/NAME, or runs/TIME OF THE START)")
    save_every: Interval = flag(
        Interval("30min"),
        help="time between checkpoints, as 30min or 2h, or a number of updates; the last update is always saved",
    )
    async_save: bool = flag(
        False, help="copy the state to host memory and write it while training goes on; the last save is waited for"
    )
    keep_checkpoints: int = flag(3, help="newest checkpoints kept; older ones are deleted")
    continue_from: str | None = flag(
        None,
        help="checkpoint or run folder to continue; 'auto' takes the newest valid one of --save_dir or of "
        "runs/NAME, or starts from the beginning where there is none",
        metavar="DIR|auto",
    )

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1:
            raise UsageError(f"--keep_checkpoints {self.keep_checkpoints}: give at least 1")
