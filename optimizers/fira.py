"""Fira: a low-rank Adam, and what it does not see scaled alike (Chen et al., arXiv 2410.01623).

    R = project(G)   N = Adam's step of R   s = |N| / (|R| + 1e-8) for each channel   D = G - alpha lift(R)
    U = alpha lift(N) + limit(s D)          W <- W - lr U, then decoupled decay

The norm of s D is limited to 1.01 times the last one. D is that of the released code: below alpha 1, of which every
published run was, it keeps a part of the gradient in the subspace. The basis is GaLore's, of the shorter side. The
limiter starts at the first residual that is not zero (see `limit_growth`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.settings import hyper
from .primitives import moments
from .primitives.growth import limit_growth
from .primitives.steps import AdamStep
from .primitives.subspace import UNPROJECTED, SingularSubspace, SubspaceSettings, rank_of, refuse_rank, standard_side

RATIO_EPS = 1e-8


@dataclass(frozen=True)
class FiraSettings(SubspaceSettings):
    """What Fira takes."""

    alpha: float = hyper(0.25, "factor on what the low-rank Adam does", above=0.0)
    proj_type: str = hyper("std", "side of the projection: the shorter one", choices=("std",), flag=False)


@dataclass(frozen=True)
class FiraStep(SingularSubspace):
    """Fira on one matrix."""

    h: FiraSettings

    @property
    def lr_factor(self) -> float:
        return self.h.alpha

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        inner = AdamStep(self.h.beta1).state(torch.Size(self.projected_shape(shape)))
        return {**self.basis_spec(shape), **inner, "norm": StateSpec((1,), "statistic")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adam_scalars(step, self.h.beta1, self.h.beta2, self.h.correct_bias)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        basis, alpha = state["basis"], self.h.alpha
        r = self.project(grad, basis)
        m = moments.first_moment(state, r, self.h.beta1)
        step = m / (moments.second_moment(state, r * r, self.h.beta2).sqrt() + self.h.eps)
        sizes = [torch.linalg.vector_norm(x, dim=self.across, keepdim=True) for x in (step, r)]
        unseen = (grad - self.lift(r, basis) * alpha) * (sizes[0] / (sizes[1] + RATIO_EPS))
        return (self.lift(step, basis) * alpha + limit_growth(unseen, state["norm"])) * s["step_size"]


class FiraAdamW(EngineOptimizer[FiraSettings]):
    """Fira on the matrices of groups with a `rank`; AdamW with decay after the step, at the same lr, elsewhere."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        refuse_rank(param_group.get("rank", self.defaults["rank"]), param_group)
        super().add_param_group(param_group)

    own_rules = (FiraStep,)
    chosen_by = "matrices of groups with a rank"

    def rule_for(self, h: FiraSettings, param: Tensor) -> UpdateRule:
        if h.rank is None or param.ndim != 2:
            return AdamStep(h.beta1, h.beta2, h.eps, h.correct_bias)
        side, narrow = standard_side(param.shape), self.takes_narrow_products(param)
        return FiraStep(side, rank_of(h.rank, param.shape), h.update_proj_gap, narrow, h)


_ROUTES = (Route(BODY_MATRICES, body_matrix), Route("rest", everything, UNPROJECTED))
register(Method("fira", "Fira: a low-rank AdamW plus the scaled residual of the gradient", FiraAdamW, _ROUTES))
