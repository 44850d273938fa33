"""Fine-tunes a language model on prompt and response pairs with transformers' Trainer."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peft_pretraining.finetuning.adapters import add_lora
from peft_pretraining.finetuning.classification import Build
from peft_pretraining.finetuning.pairs import IGNORED, Pair, ResponseCollator, exact_match, final_number, to_row
from peft_pretraining.finetuning.pretrained import load_language_model
from peft_pretraining.finetuning.results import SeedResult
from peft_pretraining.finetuning.training import LoopSettings, trainer_arguments


@dataclass(frozen=True)
class InstructionSettings:
    """What to fine-tune beside the loop.

    max_length: tokens of prompt and response together. generate: how many validation prompts are answered at the end
    to count exact matches. dtype: of the weights.
    """

    model: str
    max_length: int = 512
    lora_rank: int = 0
    eval_batch_size: int = 8
    generate: int = 0
    max_new_tokens: int = 256
    dtype: str = "bfloat16"
    activation_checkpointing: bool = False


def finetune(
    train: Sequence[Pair],
    validation: Sequence[Pair],
    settings: InstructionSettings,
    loop: LoopSettings,
    build: Build,
    seed: int,
    folder: Path,
) -> SeedResult:
    """One run: the mean loss per response token on the validation pairs after each epoch, exact matches at the end.

    The model and its tokenizer are saved to folder/model.
    """
    from transformers import Trainer, set_seed

    set_seed(seed)
    started = time.perf_counter()
    model, tokenizer = load_language_model(settings.model, settings.dtype)
    model.config.use_cache = False
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora_rank:
        model = add_lora(model, settings.lora_rank, classification=False)
    rows, held_out = ([to_row(pair, tokenizer, settings.max_length) for pair in part] for part in (train, validation))
    optimizer = build(model)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(
            loop, seed, folder, settings.eval_batch_size, remove_unused_columns=False, prediction_loss_only=True
        ),
        train_dataset=rows,  # type: ignore[arg-type]  # a list of rows is a dataset with a length
        data_collator=ResponseCollator(tokenizer.pad_token_id),
        optimizers=(optimizer, loop.scheduler(optimizer, loop.updates(len(rows)))),
        eval_dataset=held_out,  # type: ignore[arg-type]
    )
    before = response_loss(model, held_out, tokenizer.pad_token_id, settings.eval_batch_size)
    trainer.train()
    after = response_loss(model, held_out, tokenizer.pad_token_id, settings.eval_batch_size)
    found = {"validation loss before": before, "validation loss": after}
    if settings.generate:
        asked = [pair for pair in validation if final_number(pair.response) is not None][: settings.generate]
        answers = generate_responses(model, tokenizer, asked, settings)
        found["validation exact match"] = exact_match(answers, asked)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    epochs = float(trainer.state.epoch or 0.0)
    return SeedResult(seed, epochs, epochs, found, found, None, time.perf_counter() - started)


@torch.no_grad()
def response_loss(model: Any, rows: Sequence[dict[str, list[int]]], padding: int, batch_size: int) -> float:
    """Mean cross-entropy over all response tokens of the rows, in nats: sums over tokens, not a mean of batch means."""
    was_training = model.training
    model.eval()
    collate, total, count = ResponseCollator(padding), 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = {k: v.to(model.device) for k, v in collate(rows[start : start + batch_size]).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total += float(losses)
        count += int((labels != IGNORED).sum())
    model.train(was_training)
    return total / count if count else math.nan


@torch.no_grad()
def generate_responses(model: Any, tokenizer: Any, pairs: Sequence[Pair], settings: InstructionSettings) -> list[str]:
    """Greedy responses, one prompt after another: rows of different length need no padding at the left."""
    model.eval()
    texts = []
    for pair in pairs:
        row = to_row(pair, tokenizer, settings.max_length)
        prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    return texts
