"""Everything that decides a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.data.config import DataConfig
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.flags.fields import flag_values
from peft_pretraining.model.config import ModelConfig
from peft_pretraining.tracking.config import LoggingConfig
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.schedule import ScheduleConfig

if TYPE_CHECKING:
    from peft_pretraining.flags.optimizer import OptimizerConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run: made by `peft_pretraining.cli.parse.parse_config`, saved as run.json."""

    model: ModelConfig
    data: DataConfig
    optimizer: "OptimizerConfig"
    schedule: ScheduleConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    parallel: ParallelConfig
    logging: LoggingConfig

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-able: section name -> flag name -> value."""
        return {name: flag_values(section) for name, section in vars(self).items()}
