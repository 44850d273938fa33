"""Prompt and response pairs: reading them in the layouts people have, and rows whose loss is the response's only."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_pretraining.errors import UsageError

IGNORED = -100
"""The label of positions without loss."""

_LAYOUTS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
_ALPACA = ("instruction", "output")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Pair:
    """A prompt and the response that is to be learnt."""

    prompt: str
    response: str


def read_pairs(flag: str, path: str) -> list[Pair]:
    """Pairs from .jsonl or .json: prompt/response, prompt/completion, question/answer (GSM8K) or Alpaca's
    instruction/input/output. Raises UsageError naming the file and the line."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{flag} {path}: no such file")
    pairs = [_pair(flag, path, number, row) for number, row in _rows(flag, file)]
    if not pairs:
        raise UsageError(f"{flag} {path}: there are no examples")
    return pairs


def load_pairs(task: str | None, train_file: str | None, validation_file: str | None) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: of the hub by name, or of files. Without a validation file the last twentieth of
    the training file is held out. Raises UsageError."""
    if task is not None:
        return _gsm8k()
    assert train_file is not None
    train = read_pairs("--train_file", train_file)
    if validation_file is not None:
        return train, read_pairs("--validation_file", validation_file)
    held_out = max(1, len(train) // 20)
    if len(train) < 2:
        raise UsageError(f"--train_file {train_file}: one example alone leaves none for validation")
    return train[:-held_out], train[-held_out:]


def _gsm8k() -> tuple[list[Pair], list[Pair]]:
    from datasets import load_dataset

    try:
        data = load_dataset("openai/gsm8k", "main")
    except Exception as error:  # the hub's client raises many kinds
        raise UsageError(
            f"--task_name gsm8k could not be fetched from the hub ({type(error).__name__}); give --train_file"
        ) from error
    train, test = ([Pair(row["question"], row["answer"]) for row in data[split]] for split in ("train", "test"))
    return train, test


def _rows(flag: str, file: Path) -> Iterator[tuple[int, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json" and text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise UsageError(f"{flag} {file}: not valid JSON ({error})") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise UsageError(f"{flag} {file}, line {number}: not valid JSON ({error})") from error


def _pair(flag: str, path: str, number: int, row: Any) -> Pair:
    if not isinstance(row, Mapping):
        raise UsageError(f"{flag} {path}, example {number}: an object is expected, found a {type(row).__name__}")
    found = next((names for names in (*_LAYOUTS, _ALPACA) if all(name in row for name in names)), None)
    if found is None:
        raise UsageError(
            f"{flag} {path}, example {number}: has the fields {', '.join(map(str, row))}; expected prompt and "
            "response, question and answer, or instruction, input and output"
        )
    prompt, response = (str(row[name]) for name in found)
    if found == _ALPACA:
        prompt = _alpaca_prompt(prompt, str(row.get("input") or ""))
    if not response:
        raise UsageError(f"{flag} {path}, example {number}: the {found[1]} is empty")
    return Pair(prompt, response)


def _alpaca_prompt(instruction: str, context: str) -> str:
    parts = [f"### Instruction:\n{instruction}", *([f"### Input:\n{context}"] if context else []), "### Response:\n"]
    return "\n\n".join(parts)


def to_row(pair: Pair, tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """Tokens of prompt, response and end; labels are IGNORED over the prompt.

    A newline joins prompt and response where neither has white space there. Cut at max_length tokens from the left of
    the prompt, so that what is learnt stays; a response that is longer than a row is cut at its end.
    """
    joint = "" if pair.prompt[-1:].isspace() or pair.response[:1].isspace() or not pair.prompt else "\n"
    prompt = tokenizer(pair.prompt + joint, add_special_tokens=False)["input_ids"]
    response = tokenizer(pair.response, add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    response = (response + end)[: max_length - len(start)]
    room = max_length - len(start) - len(response)
    prompt = start + prompt[max(0, len(prompt) - room) :]
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


class ResponseCollator:
    """Pads rows at the right; padded positions have no loss and are not attended to."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Tensors of shape (rows, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([[*row[name], *([value] * (longest - len(row[name])))] for row in rows])

        ids = padded("input_ids", self.padding)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        return {"input_ids": ids, "labels": padded("labels", IGNORED), "attention_mask": mask}


def final_number(text: str) -> str | None:
    """The number after the last `####`, as GSM8K's answers end, without thousands separators; None without one."""
    _, mark, tail = text.rpartition("####")
    match = _NUMBER.search(tail) if mark else None
    if match is None:
        return None
    number = match[0].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def exact_match(generated: Sequence[str], pairs: Sequence[Pair]) -> float:
    """Share of generated responses whose final number is that of the true response."""
    right = [final_number(text) == final_number(pair.response) for text, pair in zip(generated, pairs, strict=True)]
    return sum(right) / len(right)
