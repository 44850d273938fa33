"""Flags of what a run reports."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import Interval, flag

_LONGEST_TAG = 64


@dataclass(frozen=True)
class LoggingConfig:
    """The name of a run and where its metrics go."""

    _argument_group_name: ClassVar[str] = "reports"

    name: str | None = flag(None, help="name of the run, and of its folder under runs/ without --save_dir")
    tags: str | None = flag(None, help="tags of the run in wandb, separated by commas, of at most 64 characters each")
    wandb_mode: str = flag(
        "auto",
        choices=("auto", "online", "offline", "disabled"),
        help="auto: what WANDB_MODE says; else online where credentials exist and the server answers, offline where it "
        "does not answer, and off without credentials",
    )
    wandb_project: str | None = flag(None, help="wandb project (default: thrift-llama)")
    wandb_run_name: str | None = flag(None, help="name of the run in wandb (default: --name)")
    wandb_job_type: str | None = flag(None, help="job type of the run in wandb")
    tensorboard: bool = flag(False, help="also write TensorBoard files, into tensorboard/ of the run folder")
    log_every: Interval = flag(
        Interval("30s"),
        help="time between two lines of a log that is no terminal, as 30s or 5min, or a number of updates",
    )
    log_details: bool = flag(
        False,
        help="also report, layer by layer, gradient, update and weight norms, effective rank, captured energy and "
        "drift of projections, second moments, and the applied learning rates; not under --parallel fsdp",
    )
    details_every: int = flag(10, help="updates between two reports of --log_details")

    def __post_init__(self) -> None:
        if self.details_every < 1:
            raise UsageError(f"--details_every {self.details_every}: give at least 1")
        for tag in self.tag_list():
            if len(tag) > _LONGEST_TAG and self.wandb_mode != "disabled":
                raise UsageError(f"--tags {tag}: wandb takes tags of at most {_LONGEST_TAG} characters")

    def tag_list(self) -> list[str]:
        """The tags, without the empty ones that a stray comma makes."""
        return [tag.strip() for tag in (self.tags or "").split(",") if tag.strip()]
