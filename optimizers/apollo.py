"""APOLLO and APOLLO-Mini: learning rates of channels, learned in a small projection (arXiv 2412.05270, MLSys 2025).

    R = project(G)      N = Adam's step of R      s = |N| / (|R| + 1e-8) for each channel, or for the whole matrix
    U = sqrt(scale) s G, its norm limited to 1.01 times the last one      W <- W - lr U, then decoupled decay

The projection P has entries N(0, 1) / sqrt(rank) and is drawn anew before updates 1, T+1, 2T+1, ...; `proj="svd"` takes
singular vectors of the gradient, as GaLore. It multiplies so that the longer side remains.

P is made from a counter at every update (seed, number of the parameter, number of the draw): the same on every process,
with nothing to keep, send or save. The limiter starts at the first gradient that is not zero (see `limit_growth`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.settings import hyper
from .primitives import moments, random_numbers
from .primitives.growth import limit_growth
from .primitives.steps import AdamStep
from .primitives.subspace import (
    UNPROJECTED,
    OneSided,
    SingularSubspace,
    SubspaceSettings,
    rank_of,
    refuse_rank,
    standard_side,
)

RATIO_EPS = 1e-8


@dataclass(frozen=True)
class ApolloSettings(SubspaceSettings):
    """What APOLLO takes."""

    scale: float = hyper(1.0, "the step is multiplied by its square root", above=0.0)
    proj: str = hyper("random", "where the projection comes from", choices=("random", "svd"))
    scale_front: bool = hyper(False, "multiply by the square root of the scale before the limiter instead of after it")
    disable_nl: bool = hyper(False, "leave out the norm-growth limiter")
    scale_type: str = hyper("channel", "what shares a learning rate", choices=("channel", "tensor"), flag=False)
    proj_type: str = hyper("std", "side of the projection: the shorter one", choices=("std",), flag=False)


@dataclass(frozen=True)
class MiniSettings(ApolloSettings):
    """What APOLLO-Mini takes: rank 1, and one learning rate for a matrix."""

    rank: int | None = hyper(1, "rank of the projection", at_least=1, at_most=1, flag=False, released=None)
    scale: float = hyper(128.0, "the step is multiplied by its square root", above=0.0)
    scale_type: str = hyper("tensor", "what shares a learning rate", choices=("tensor",), flag=False)


@dataclass(frozen=True)
class ApolloStep(OneSided):
    """APOLLO with a random projection. seed: of the parameter."""

    h: ApolloSettings
    seed: int = field(default=0, compare=False)

    def projected_shape(self, shape: torch.Size) -> tuple[int, int]:
        """The shape of the projected matrix; a random projection may have a rank above its sides."""
        return (shape[0], self.rank) if self.side == "right" else (self.rank, shape[1])

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        inner = AdamStep(self.h.beta1).state(torch.Size(self.projected_shape(shape)))
        return inner if self.h.disable_nl else {**inner, "norm": StateSpec((1,), "statistic")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        adam = moments.adam_scalars(step, self.h.beta1, self.h.beta2, self.h.correct_bias)
        return {**adam, **random_numbers.key(self.seed, (step - 1) // self.gap)}

    def projection(self, grad: Tensor, state: State, s: Scalars) -> Tensor:
        """P of this update: (rank, n) on the right, (m, rank) on the left."""
        rows, columns = (self.rank, grad.shape[1]) if self.side == "right" else (grad.shape[0], self.rank)
        return random_numbers.normal(rows, columns, s, grad.device) / math.sqrt(self.rank)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        r = self.project(grad, self.projection(grad, state, s))
        m = moments.first_moment(state, r, self.h.beta1)
        step = m / (moments.second_moment(state, r * r, self.h.beta2).sqrt() + self.h.eps)
        along = self.across if self.h.scale_type == "channel" else None
        norms = (torch.linalg.vector_norm(x, dim=along, keepdim=along is not None) for x in (step, r))
        update = grad * (next(norms) / (next(norms) + RATIO_EPS))
        front, after = self.lr_factor if self.h.scale_front else 1.0, 1.0 if self.h.scale_front else self.lr_factor
        update = update * front
        update = update if self.h.disable_nl else limit_growth(update, state["norm"])
        return update * (after * s["step_size"])

    @property
    def lr_factor(self) -> float:
        return math.sqrt(self.h.scale)


@dataclass(frozen=True)
class SingularApolloStep(SingularSubspace, ApolloStep):
    """APOLLO with the gradient's singular vectors as projection."""

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {**self.basis_spec(shape), **super().state(shape)}

    def projection(self, grad: Tensor, state: State, s: Scalars) -> Tensor:
        return state["basis"]


class APOLLOAdamW(EngineOptimizer[ApolloSettings]):
    """APOLLO on the matrices of groups with a `rank`; AdamW with decay after the step, at the same lr, elsewhere."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        refuse_rank(param_group.get("rank", self.defaults["rank"]), param_group)
        super().add_param_group(param_group)

    own_rules = (ApolloStep,)
    chosen_by = "matrices of groups with a rank"

    def rule_for(self, h: ApolloSettings, param: Tensor) -> UpdateRule:
        if h.rank is None or param.ndim != 2:
            return AdamStep(h.beta1, h.beta2, h.eps, h.correct_bias)
        rank = rank_of(h.rank, param.shape)
        common = (standard_side(param.shape), rank, h.update_proj_gap, self.takes_narrow_products(param), h)
        if h.proj == "svd":
            return SingularApolloStep(*common)
        number = self.managed[param].index if param in self.managed else len(self.managed)
        return ApolloStep(*common, seed=(self.options.rounding_seed << 32) + number)


class APOLLOMini(APOLLOAdamW, EngineOptimizer[MiniSettings]):
    """APOLLO-Mini: rank 1, one learning rate for a matrix."""


_ROUTES = (Route(BODY_MATRICES, body_matrix), Route("rest", everything, UNPROJECTED))
register(Method("apollo", "APOLLO: AdamW's learning rates of channels, from a small projection", APOLLOAdamW, _ROUTES))
register(Method("apollo_mini", "APOLLO-Mini: one learning rate a matrix, projected to rank 1", APOLLOMini, _ROUTES))
