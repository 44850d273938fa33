"""Fine-tunes a classifier with transformers' Trainer, once for each seed."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peft_pretraining.errors import UsageError
from peft_pretraining.finetuning.adapters import add_lora
from peft_pretraining.finetuning.metrics import scores
from peft_pretraining.finetuning.pretrained import load_classifier
from peft_pretraining.finetuning.results import SeedResult
from peft_pretraining.finetuning.tasks import Labelled
from peft_pretraining.finetuning.training import LoopSettings, trainer_arguments

Build = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class ClassificationSettings:
    """What to fine-tune beside the loop. max_length: tokens of an example. lora_rank 0: all weights train."""

    model: str
    max_length: int = 128
    lora_rank: int = 0
    eval_batch_size: int = 64


def finetune(
    data: Labelled, settings: ClassificationSettings, loop: LoopSettings, build: Build, seed: int, folder: Path
) -> SeedResult:
    """One fine-tuning run: evaluated after each epoch, scores of the last and of the best epoch.

    build makes the optimizer of the model. Raises UsageError for a model that cannot be loaded.
    """
    from transformers import DataCollatorWithPadding, Trainer, set_seed

    set_seed(seed)
    started = time.perf_counter()
    classes = 1 if data.task.regression else len(data.labels)
    model, tokenizer = load_classifier(settings.model, classes, data.task.regression)
    if settings.lora_rank:
        model = add_lora(model, settings.lora_rank, classification=True)
    rows = Rows(data, tokenizer, settings.max_length)
    train = rows.of(data.train)
    updates = loop.updates(len(train))
    optimizer = build(model)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(loop, seed, folder, settings.eval_batch_size),
        train_dataset=train,
        eval_dataset={split: rows.of(part) for split, part in data.validation.items()},
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda output: scores(data.task.metrics, rows.predicted(output[0]), output[1]),
        optimizers=(optimizer, loop.scheduler(optimizer, updates)),
    )
    trainer.train()
    epochs = _by_epoch(trainer.state.log_history, data)
    if not epochs:
        raise UsageError("the run was too short to be evaluated: give --num_train_epochs of at least 1")
    main = next(iter(epochs[0][1]))
    best = max(epochs, key=lambda entry: entry[1][main])
    return SeedResult(
        seed, epochs[-1][0], best[0], epochs[-1][1], best[1], _majority(data), time.perf_counter() - started
    )


class Rows:
    """Turns examples of a task into rows of tokens, and outputs of the model into predictions."""

    def __init__(self, data: Labelled, tokenizer: Any, max_length: int) -> None:
        self.task, self.tokenizer, self.max_length = data.task, tokenizer, max_length

    def of(self, part: Any) -> Any:
        """The tokenized examples, labels kept."""
        kept = [name for name in part.column_names if name != "label"]
        return part.map(self._tokenize, batched=True, remove_columns=kept)

    def _tokenize(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[column] for column in self.task.columns]
        return dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))

    def predicted(self, logits: Any) -> np.ndarray:
        """Labels, or values of a regression, from logits of shape (examples, classes)."""
        values = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        return values[:, 0] if self.task.regression else values.argmax(axis=-1)


def _by_epoch(history: list[dict[str, Any]], data: Labelled) -> list[tuple[float, dict[str, float]]]:
    """(epoch, {"split metric": score}) in order; the splits of one epoch stand together."""
    found: dict[float, dict[str, float]] = {}
    for entry in history:
        for split in data.validation:
            for metric in data.task.metrics:
                value = entry.get(f"eval_{split}_{metric}")
                if value is not None:
                    found.setdefault(float(entry["epoch"]), {})[f"{split} {metric}"] = float(value)
    return sorted(found.items())


def _majority(data: Labelled) -> float | None:
    if data.task.regression:
        return None
    labels = np.asarray(next(iter(data.validation.values()))["label"])
    return float(np.bincount(labels).max() / len(labels))


def as_settings(*parts: Any) -> dict[str, Any]:
    """The fields of several settings as one dictionary."""
    return {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
