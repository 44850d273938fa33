"""Model FLOPs utilisation: the share of a device's peak that the model's own arithmetic takes.

PaLM (Chowdhery et al. 2022, appendix B): 6 FLOPs for each token and each weight of a matrix product, and 12 for each
layer, position and hidden unit of attention, forward and backward together. Activations that checkpointing computes
again are no arithmetic of the model's own and do not count.
"""

from typing import Any

import torch
from torch import nn

# Dense bfloat16 peaks in FLOPs per second, from the vendors' data sheets; the first name that fits counts.
_PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A6000", 155e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak of the device in FLOPs per second; None where it is not known, and for other formats than bfloat16."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """The peak of a device of this name, in bfloat16."""
    words = name.replace("-", " ").split()
    return next((peak for known, peak in _PEAKS if all(word in words for word in known.split())), None)


def flops_per_token(model: nn.Module, positions: int) -> float:
    """FLOPs of the forward and backward pass for one token in rows of `positions` tokens.

    model: with Hugging Face's LLaMA configuration as `config`. Looking up an embedding is no arithmetic, so a table of
    embeddings counts only where it is the head's weight too.
    """
    config: Any = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    if config.tie_word_embeddings:
        matrices += config.vocab_size * config.hidden_size
    heads = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return 6.0 * matrices + 12.0 * config.num_hidden_layers * heads * positions
