"""AdamW-SN and its general form (arXiv 2411.07120): one second moment per row or column, or per flat subset."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.oracles.moments import Adam
from tests.oracles.parameter import ParameterOracle, PlainAdam

SMALLEST_SUBSET = 4  # below this nothing would be saved


class _SummedOverShorterSide(Adam):
    """v averages the sum of squares over the shorter side, so that the longer side remains."""

    def second_moment_target(self, gradient: Tensor) -> Tensor:
        rows, columns = gradient.shape
        return (gradient**2).sum(dim=1 if rows >= columns else 0, keepdim=True)


class _SummedOverSubsets(Adam):
    """v averages the sum of squares over consecutive subsets; gradients come as (subsets, size)."""

    def second_moment_target(self, gradient: Tensor) -> Tensor:
        return (gradient**2).sum(dim=1, keepdim=True)


def subset_length(numel: int, subset_size: int) -> int:
    """The largest divisor of `numel` not above the asked size; -j asks for floor(sqrt(numel) / j); 0 means none."""
    wanted = subset_size if subset_size > 0 else math.floor(math.sqrt(numel) / -subset_size)
    return max((k for k in range(1, min(wanted, numel) + 1) if numel % k == 0), default=0)


class SubsetNorm(ParameterOracle):
    """AdamW-SN of one 2-D weight: eps before the bias correction, decay after."""

    def __init__(self, weight: Tensor, *, betas: tuple[float, float], eps: float, correct_bias: bool = True, **common):
        super().__init__(weight, **common)
        self.adam = _SummedOverShorterSide(betas, eps, "before", correct_bias)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.weight = self.weight - self.adam.step(gradient, self.t, lr)
        self.decay(lr)


class SubsetNormGeneral(ParameterOracle):
    """AdamW-SN general of a weight of any shape, flattened into subsets of one length."""

    def __init__(
        self,
        weight: Tensor,
        *,
        length: int,
        betas: tuple[float, float],
        eps: float,
        correct_bias: bool = True,
        **common,
    ):
        super().__init__(weight, **common)
        self.length = length
        self.adam = _SummedOverSubsets(betas, eps, "before", correct_bias)

    def update(self, gradient: Tensor, lr: float) -> None:
        subsets = gradient.reshape(-1, self.length)
        self.weight = self.weight - self.adam.step(subsets, self.t, lr).reshape(self.weight.shape)
        self.decay(lr)


def subset_norm_general(
    weight: Tensor,
    *,
    subset_size: int = -1,
    sn: bool = True,
    betas: tuple[float, float],
    eps: float,
    correct_bias: bool = True,
    weight_decay: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> ParameterOracle:
    """The oracle of one parameter of AdamWSNG: subsets where they save something, plain AdamW elsewhere."""
    common = {
        "betas": betas,
        "eps": eps,
        "correct_bias": correct_bias,
        "weight_decay": weight_decay,
        "dtype": dtype,
    }
    length = subset_length(weight.numel(), subset_size) if sn else 0
    if length >= SMALLEST_SUBSET:
        return SubsetNormGeneral(weight, length=length, **common)
    return PlainAdam(weight, eps_placement="before", decay_order="after", **common)
