"""Models small enough to compare with slow references."""

import json
from pathlib import Path
from typing import Any

import torch

from peft_pretraining.model.llama import ModelConfig, PretrainingLlama, build_model

TINY = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration file of a model of about 20,000 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return path


def tiny_model(folder: Path, changes: dict[str, Any] | None = None, seed: int = 0, **flags: Any) -> PretrainingLlama:
    """A tiny fp32 model in training mode; `changes` are to its configuration file, `flags` to ModelConfig."""
    path = write_config(folder, **(changes or {}))
    return build_model(ModelConfig(str(path), **{"dtype": "float32", **flags}), "cpu", seed).train()


def padded_rows(lengths: list[int], length: int, vocab_size: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows of these many real tokens, right padded with 0 to `length`, and the lengths."""
    ids = torch.randint(2, vocab_size, (len(lengths), length), generator=torch.Generator().manual_seed(3))
    real = torch.tensor(lengths)
    return ids.masked_fill(torch.arange(length) >= real[:, None], 0), real
