"""What a run reports."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.config import flag


@dataclass(frozen=True)
class LoggingConfig:
    """The name of a run and where its metrics go."""

    _argument_group_name: ClassVar[str] = "reports"

    name: str | None = flag(None, help="name of the run; names its folder under runs/ where --save_dir is not given")
    tags: str | None = flag(None, help="tags of the run in wandb, separated by commas")
    wandb_mode: str = flag(
        "auto",
        choices=("auto", "online", "offline", "disabled"),
        help="auto: online where credentials exist, otherwise off with a notice",
    )
    wandb_project: str | None = flag(None, help="wandb project (default: thrift-llama)")
    wandb_run_name: str | None = flag(None, help="name of the run in wandb (default: --name)")
    wandb_job_type: str | None = flag(None, help="job type of the run in wandb")
    log_details: bool = flag(False, help="also report the gradient norm and the applied learning rate of every parameter group")
