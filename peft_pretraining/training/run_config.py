"""Everything that decides a run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.data.config import DataConfig
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.flags.optimizer import OptimizerConfig
from peft_pretraining.model.llama import ModelConfig
from peft_pretraining.tracking.config import LoggingConfig
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run: made by `peft_pretraining.cli.parse.parse_config`, saved as run.json."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    parallel: ParallelConfig
    logging: LoggingConfig

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-able: section name -> flag name -> value."""
        return {name: dataclasses.asdict(section) for name, section in vars(self).items()}
