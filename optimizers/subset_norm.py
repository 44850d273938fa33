"""AdamW-Subset-Norm and RMSProp-Subset-Norm (Nguyen & Nguyen, arXiv 2411.07120).

One second-moment value for a subset of entries instead of one an entry: v = E[sum of G^2 over the subset]_beta2,
m = E[G]_beta1, W <- W - lr * sqrt(c2)/c1 * m / (sqrt(v) + eps), then decoupled decay. beta1 = 0 is RMSProp-SN: no
momentum is kept.

`AdamWSN` takes rows or columns of a matrix as subsets, so that the longer side remains; `AdamWSNG` takes consecutive
elements of the flattened tensor, for parameters of any shape, sharded ones too.

Deviations from the released code: mathematics in float32 whatever the weights' dtype; the general form needs no `sn`
key, and falls back to plain AdamW, with one log line, where no divisor of 4 or more exists, instead of dividing by
zero or silently saving nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import Route, everything
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.settings import beta, hyper
from .primitives import moments
from .primitives.blocks import kept_dim_shape, largest_divisor, subset_sum
from .primitives.steps import AdamStep, HuggingFaceAdamSettings

logger = logging.getLogger(__name__)
SMALLEST_SUBSET = 4


@dataclass(frozen=True)
class SubsetNormSettings(HuggingFaceAdamSettings):
    """What both forms of AdamW-SN take."""

    beta1: float = beta(
        0.9, "decay of the momentum; 0 is RMSProp-SN, which keeps none", key="betas", flags=("adam_beta1",)
    )


@dataclass(frozen=True)
class MatrixSubsetNormSettings(SubsetNormSettings):
    """What AdamW-SN takes."""

    sn: bool = hyper(False, "whether matrices of the group get subset norms", flag=False)


@dataclass(frozen=True)
class GeneralSubsetNormSettings(SubsetNormSettings):
    """What the general form takes."""

    subset_size: int = hyper(-1, "elements that share a second moment (about hidden/2); -j: sqrt(elements)/j")
    sn: bool = hyper(True, "whether parameters of the group get subset norms", flag=False)

    def check(self) -> None:
        if self.subset_size == 0:
            raise ValueError("subset_size=0: give a positive size, or -j for sqrt(elements)/j")


@dataclass(frozen=True)
class SubsetNormStep(UpdateRule):
    """Subset norm of a matrix by rows or columns (arXiv 2411.07120, algorithm 1)."""

    h: SubsetNormSettings

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.h.beta1 else {}
        return {**specs, "exp_avg_sq": StateSpec(kept_dim_shape(tuple(shape)), "second_moment")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adam_scalars(step, self.h.beta1, self.h.beta2, self.h.correct_bias)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        v = moments.second_moment(state, subset_sum(grad * grad, state["exp_avg_sq"]), self.h.beta2)
        m = moments.first_moment(state, grad, self.h.beta1)
        return moments.adam_direction(m, v, s, self.h.eps, eps_inside=False)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1 if shape[0] >= shape[1] else None


@dataclass(frozen=True)
class FlatSubsetNormStep(SubsetNormStep):
    """Subset norm over consecutive elements of the flattened tensor; `subset` divides its size."""

    subset: int

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = super().state(torch.Size((shape.numel(), 1)))
        if self.h.beta1:
            specs["exp_avg"] = StateSpec(tuple(shape), "moment")
        return {**specs, "exp_avg_sq": StateSpec((shape.numel() // self.subset, 1), "second_moment")}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        rows = grad.reshape(-1, self.subset)
        v = moments.second_moment(state, (rows * rows).sum(dim=1, keepdim=True), self.h.beta2)
        m = moments.first_moment(state, grad, self.h.beta1).reshape(-1, self.subset)
        return moments.adam_direction(m, v, s, self.h.eps, eps_inside=False).reshape(grad.shape)

    def row_block(self, shape: torch.Size) -> int | None:
        row = shape[1:].numel()
        return self.subset // math.gcd(self.subset, row)


def subset_length(numel: int, subset_size: int) -> int:
    """Elements in a subset: the largest divisor of numel not above subset_size.

    subset_size -j stands for floor(sqrt(numel) / j). Returns 1 (plain AdamW) where the wanted size is 4 or more, or
    derived from the shape, but no divisor of at least 4 exists.
    """
    derived = subset_size < 0
    wanted = int(math.sqrt(numel) / -subset_size) if derived else subset_size
    length = largest_divisor(numel, wanted)
    too_small = length < SMALLEST_SUBSET and (derived or wanted >= SMALLEST_SUBSET)
    return 1 if too_small else length


def _adam(h: SubsetNormSettings) -> AdamStep:
    return AdamStep(h.beta1, h.beta2, h.eps, h.correct_bias)


class AdamWSN(EngineOptimizer[MatrixSubsetNormSettings]):
    """AdamW with subset norm by rows or columns on the matrices of groups with `sn=True`; AdamW elsewhere.

    beta1 = 0 is RMSProp-SN. See `EngineOptimizer` for the engine's keyword arguments.
    """

    own_rules = (SubsetNormStep,)
    chosen_by = "matrices of groups with sn=True"

    def rule_for(self, h: MatrixSubsetNormSettings, param: Tensor) -> UpdateRule:
        return SubsetNormStep(h) if h.sn and param.ndim == 2 else _adam(h)


class AdamWSNG(EngineOptimizer[GeneralSubsetNormSettings]):
    """AdamW with subset norm over `subset_size` consecutive elements; groups with `sn=False` are plain AdamW.

    subset_size: elements in a subset, lowered to a divisor of the tensor's size; -j means sqrt(size)/j.
    """

    def __init__(self, params: Iterable, *values: Any, **keywords: Any) -> None:
        self._fallbacks: set[torch.Size] = set()
        super().__init__(params, *values, **keywords)

    def rule_for(self, h: GeneralSubsetNormSettings, param: Tensor) -> UpdateRule:
        subset = subset_length(param.numel(), h.subset_size) if h.sn else 1
        if h.sn and subset == 1 != h.subset_size and param.shape not in self._fallbacks:
            self._fallbacks.add(param.shape)
            logger.warning(
                "no subset of 4 or more elements divides a tensor of shape %s: plain AdamW", tuple(param.shape)
            )
        return FlatSubsetNormStep(h, subset) if subset > 1 else _adam(h)


_LINEARS = Route("linear weights", lambda p: p.linear and p.tensor.ndim == 2, {"sn": True})
_ROUTES = (_LINEARS, Route("rest", everything, {"sn": False}))

register(
    Method(
        "adamw_sn",
        "AdamW-Subset-Norm (beta1 0: RMSProp-SN): one second moment a row or column of each linear weight",
        AdamWSN,
        _ROUTES,
    )
)
register(
    Method(
        "adamw_sng",
        "AdamW-Subset-Norm, general form: one second moment for --subset_size consecutive elements",
        AdamWSNG,
        _ROUTES,
    )
)
