"""Flags of checkpoints."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run lives, how often it is saved and what it continues."""

    _argument_group_name: ClassVar[str] = "checkpoints"

    save_dir: str | None = flag(None, help="run folder (default: runs/NAME, or runs/TIME OF THE START)")
    save_every: int = flag(10_000, help="updates between checkpoints; the last update is always saved")
    async_save: bool = flag(
        False, help="copy the state to host memory and write it while training goes on; the last save is waited for"
    )
    keep_checkpoints: int = flag(3, help="newest checkpoints kept; older ones are deleted")
    continue_from: str | None = flag(
        None,
        help="checkpoint or run folder to continue; 'auto' takes the newest valid one of --save_dir, or "
        "starts from the beginning where there is none",
        metavar="DIR|auto",
    )

    def __post_init__(self) -> None:
        for name in ("save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give at least 1")
        if self.continue_from == "auto" and self.save_dir is None:
            raise UsageError("--continue_from auto looks for checkpoints in --save_dir: give that flag too")
