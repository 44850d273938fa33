"""Reading stored optimizer state without the package's help."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.quantization import BLOCK, dynamic_map


def stored_value(state: dict[str, Tensor], key: str, signed: bool) -> Tensor:
    """The float64 value of a state tensor kept as float32, bfloat16, or 8-bit codes with block maxima."""
    tensor = state[key]
    if tensor.dtype != torch.uint8:
        return tensor.double()
    maxima = state[f"{key}_absmax"].double().repeat_interleave(BLOCK)[: tensor.numel()]
    return dynamic_map(signed)[tensor.reshape(-1).long()].mul(maxima).reshape(tensor.shape)
