"""The loop that both kinds of fine-tuning share: transformers' Trainer with an optimizer and a schedule of ours."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCHEDULERS = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class LoopSettings:
    """epochs, rows per micro-batch, micro-batches per update, and the schedule of the learning rate.

    warmup: updates of linear warm-up. max_updates 0: as many as the epochs have. max_norm 0: no clipping, as in the
    published fine-tuning runs (the Trainer's own default is 1.0).
    """

    epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    schedule: str = "linear"
    warmup: int = 0
    max_updates: int = 0
    max_norm: float = 0.0
    device: str = "auto"
    bf16: bool = False

    def updates(self, examples: int) -> int:
        """Updates of the weights in the whole run."""
        batches = math.ceil(examples / self.batch_size)
        per_epoch = max(1, math.ceil(batches / self.accumulation))
        return self.max_updates or max(1, math.ceil(self.epochs * per_epoch))

    def scheduler(self, optimizer: torch.optim.Optimizer, updates: int) -> Any:
        """The schedule of transformers by this name."""
        from transformers import get_scheduler

        return get_scheduler(self.schedule, optimizer, num_warmup_steps=self.warmup, num_training_steps=updates)


def trainer_arguments(loop: LoopSettings, seed: int, folder: Path, eval_batch_size: int, **further: Any) -> Any:
    """Arguments of the Trainer: evaluation after each epoch, nothing saved, nothing reported elsewhere."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": loop.epochs,
        "max_steps": loop.max_updates or -1,
        "per_device_train_batch_size": loop.batch_size,
        "per_device_eval_batch_size": eval_batch_size,
        "gradient_accumulation_steps": loop.accumulation,
        "max_grad_norm": loop.max_norm,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 50,
        "report_to": [],
        "seed": seed,
        "use_cpu": loop.device == "cpu",
        "bf16": loop.bf16,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**settings, **further})
