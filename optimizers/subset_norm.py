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
from torch import Tensor, nn

from .engine.optimizer import EngineOptimizer
from .engine.registry import Build, Method, hyper, register, with_betas
from .engine.routing import Route, everything, param_groups
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .primitives import moments
from .primitives.blocks import kept_dim_shape, largest_divisor, subset_sum
from .primitives.steps import AdamStep

logger = logging.getLogger(__name__)
SMALLEST_SUBSET = 4


@dataclass(frozen=True)
class SubsetNormStep(UpdateRule):
    """Subset norm of a matrix by rows or columns (arXiv 2411.07120, algorithm 1)."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    correct_bias: bool = True

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.beta1 else {}
        return {**specs, "exp_avg_sq": StateSpec(kept_dim_shape(tuple(shape)), "second_moment")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adam_scalars(step, self.beta1, self.beta2, self.correct_bias)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        v = moments.second_moment(state, subset_sum(grad * grad, state["exp_avg_sq"]), self.beta2)
        m = moments.first_moment(state, grad, self.beta1)
        return moments.adam_direction(m, v, s, self.eps, eps_inside=False)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1 if shape[0] >= shape[1] else None


@dataclass(frozen=True)
class FlatSubsetNormStep(SubsetNormStep):
    """Subset norm over consecutive elements of the flattened tensor; `subset` divides its size."""

    subset: int = 1

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = super().state(torch.Size((shape.numel(), 1)))
        if self.beta1:
            specs["exp_avg"] = StateSpec(tuple(shape), "moment")
        return {**specs, "exp_avg_sq": StateSpec((shape.numel() // self.subset, 1), "second_moment")}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        rows = grad.reshape(-1, self.subset)
        v = moments.second_moment(state, (rows * rows).sum(dim=1, keepdim=True), self.beta2)
        m = moments.first_moment(state, grad, self.beta1).reshape(-1, self.subset)
        return moments.adam_direction(m, v, s, self.eps, eps_inside=False).reshape(grad.shape)

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


class AdamWSN(EngineOptimizer):
    """AdamW with subset norm by rows or columns on the matrices of groups with `sn=True`; AdamW elsewhere.

    beta1 = 0 is RMSProp-SN. See `EngineOptimizer` for the engine's keyword arguments.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        **options: Any,
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias)
        super().__init__(params, defaults, options)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        kind = SubsetNormStep if group.get("sn") and param.ndim == 2 else AdamStep
        return kind(**_adam_fields(group))


class AdamWSNG(EngineOptimizer):
    """AdamW with subset norm over `subset_size` consecutive elements; groups with `sn=False` are plain AdamW.

    subset_size: elements in a subset, lowered to a divisor of the tensor's size; -j means sqrt(size)/j.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        subset_size: int = -1,
        **options: Any,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias, subset_size=subset_size
        )
        self._fallbacks: set[tuple[int, ...]] = set()
        super().__init__(params, defaults, options)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        if group["subset_size"] == 0:
            raise ValueError("subset_size=0: give a positive size, or -j for sqrt(elements)/j")
        arguments = _adam_fields(group)
        if not group.get("sn", True):
            return AdamStep(**arguments)
        subset = subset_length(param.numel(), group["subset_size"])
        if subset > 1:
            return FlatSubsetNormStep(**arguments, subset=subset)
        if group["subset_size"] != 1 and tuple(param.shape) not in self._fallbacks:
            self._fallbacks.add(tuple(param.shape))
            logger.warning(
                "no subset of 4 or more elements divides a tensor of shape %s: plain AdamW", tuple(param.shape)
            )
        return AdamStep(**arguments)


def _adam_fields(group: dict[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "correct_bias": group["correct_bias"]}


@dataclass(frozen=True)
class SubsetNormSettings:
    """What AdamW-SN takes."""

    beta1: float = hyper(0.9, "decay of the momentum; 0 is RMSProp-SN, which keeps none", flags=("adam_beta1",))
    beta2: float = hyper(0.999, "decay of the second moment")
    eps: float = hyper(1e-6, "added to the root of the second moment")
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied after the step")


@dataclass(frozen=True)
class GeneralSubsetNormSettings(SubsetNormSettings):
    """What the general form takes beside that."""

    subset_size: int = hyper(-1, "elements that share a second moment (about hidden/2); -j: sqrt(elements)/j")


def _linears(model: nn.Module) -> list[dict[str, Any]]:
    is_linear = Route("linear weights", lambda p: p.linear and p.tensor.ndim == 2, {"sn": True})
    return param_groups(model, [is_linear, Route("rest", everything, {"sn": False})])


def _build(kind: type[AdamWSN] | type[AdamWSNG]) -> Build:
    def build(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> EngineOptimizer:
        return kind(_linears(model), lr=lr, **with_betas(settings), **options)

    return build


register(
    Method(
        "adamw_sn",
        "AdamW-Subset-Norm (beta1 0: RMSProp-SN): one second moment a row or column of each linear weight",
        SubsetNormSettings,
        _build(AdamWSN),
    )
)
register(
    Method(
        "adamw_sng",
        "AdamW-Subset-Norm, general form: one second moment for --subset_size consecutive elements",
        GeneralSubsetNormSettings,
        _build(AdamWSNG),
    )
)
