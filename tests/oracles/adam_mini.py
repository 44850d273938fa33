"""Adam-mini (arXiv 2406.16793): one second moment per block, the block chosen by the parameter's role."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.oracles.parameter import ParameterOracle, PlainAdam

ROW, WHOLE = "row", "whole"
ROW_ROLES = ("embed_tokens", "lm_head", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AdamMini(ParameterOracle):
    """`rows_per_block` rows of the (rows, columns) weight share one second moment; a vector is one block."""

    def __init__(self, weight: Tensor, *, rows_per_block: int, betas: tuple[float, float], eps: float, **common):
        super().__init__(weight, **common)
        self.rows_per_block, self.eps = rows_per_block, eps
        self.beta1, self.beta2 = betas
        self.m = torch.zeros_like(self.weight)
        self.v = torch.zeros(self.weight.shape[0] // rows_per_block, dtype=self.dtype)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.decay(lr)
        c1, c2 = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        mean_square = (gradient**2).reshape(len(self.v), -1).mean(dim=1)
        self.m = self.beta1 * self.m + (1 - self.beta1) * gradient
        self.v = self.beta2 * self.v + (1 - self.beta2) * mean_square
        denominator = self.v.sqrt() / math.sqrt(c2) + self.eps
        every_row = denominator.repeat_interleave(self.rows_per_block)
        every_row = every_row.reshape(-1, *[1] * (gradient.dim() - 1))
        self.weight = self.weight - lr / c1 * self.m / every_row


def adam_mini(
    name: str,
    weight: Tensor,
    *,
    head_dim: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    one_block_value: bool = False,
    dtype: torch.dtype = torch.float64,
) -> ParameterOracle:
    """The oracle of one named parameter of a LLaMA model whose heads have `head_dim` rows each."""
    common = {"betas": betas, "eps": eps, "dtype": dtype}
    if name.endswith("bias"):
        return PlainAdam(weight, eps_placement="after", decay_order="before", **common)
    if "norm" in name:
        return AdamMini(weight, rows_per_block=weight.shape[0], **common)
    if "v_proj" in name and one_block_value:
        return AdamMini(weight, rows_per_block=weight.shape[0], weight_decay=weight_decay, **common)
    if "q_proj" in name or "k_proj" in name:
        return AdamMini(weight, rows_per_block=head_dim, weight_decay=weight_decay, **common)
    if any(role in name for role in ROW_ROLES):
        return AdamMini(weight, rows_per_block=1, weight_decay=weight_decay, **common)
    raise ValueError(f"no role for {name}")
