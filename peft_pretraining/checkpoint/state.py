"""What a checkpoint holds of a training that goes on."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_pretraining.checkpoint.optimizer_state import Groups
from peft_pretraining.checkpoint.progress import Progress
from peft_pretraining.data import TrainingData
from peft_pretraining.model.llama import PretrainingLlama


@dataclass
class TrainingState:
    """Everything that updates change, apart from the generators of random numbers.

    names: the name of every parameter that is trained. constructed_groups: the optimizer's settings before its first
    update.
    """

    model: PretrainingLlama
    optimizer: torch.optim.Optimizer
    names: dict[Tensor, str]
    constructed_groups: Groups
    data: TrainingData
    progress: Progress = field(default_factory=Progress)
