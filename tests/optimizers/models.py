"""A tiny LLaMA with everything routing must tell apart: grouped-query heads, norms, separate embedding and head."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, HIDDEN, LENGTH = 96, 64, 12


def tiny_llama(seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """One layer of 64 hidden units, 4 query heads over 2 key heads; its embedding has over 4096 elements."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=88,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def tokens(seed: int, batch: int = 2) -> Tensor:
    """Token ids (batch, LENGTH)."""
    return torch.randint(0, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def loss_of(model: LlamaForCausalLM, seed: int) -> Tensor:
    """Cross-entropy of the model on its own tokens."""
    batch = tokens(seed)
    return model(input_ids=batch, labels=batch).loss
