"""Tiny models of the architectures that routing must know, from transformers' configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "LLaMA": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED)),
    "BERT": lambda: t.BertForMaskedLM(t.BertConfig(**_SIZES)),
    "RoBERTa": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**_SIZES)),
    "GPT-2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    ),
    "GPT-NeoX": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_SIZES)),
    "Phi-3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**_SIZES)),
    "Qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**_GROUPED, head_dim=16)),
    "Gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**_GROUPED, head_dim=16)),
    "Mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**_GROUPED)),
    "Mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**_GROUPED, num_local_experts=4)),
    "ViT": lambda: t.ViTForImageClassification(t.ViTConfig(**_VIT, image_size=16, patch_size=4)),
    "ResNet": lambda: t.ResNetForImageClassification(
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
}


def tiny(architecture: str) -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[architecture]()


def loss(model: Any, architecture: str) -> torch.Tensor:
    """Of one small batch of the kind that the model takes."""
    generator = torch.Generator().manual_seed(0)
    if architecture in ("ViT", "ResNet"):
        size = 16 if architecture == "ViT" else 32
        pixels = torch.randn(2, 3, size, size, generator=generator)
        return model(pixel_values=pixels, labels=torch.tensor([0, 1])).loss
    tokens = torch.randint(3, 96, (2, 12), generator=generator)
    labels = torch.tensor([0, 1]) if architecture == "RoBERTa" else tokens
    return model(input_ids=tokens, labels=labels).loss
