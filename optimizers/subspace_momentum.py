"""AdamW-SNSM: subset norm with subspace momentum (Nguyen & Nguyen, arXiv 2411.07120, ICML 2025).

    M <- b1 M + (1 - b1) project(G)      V <- b2 V + (1 - b2) (sums of G^2 over subsets)
    W <- W - lr sqrt(c2)/c1 (lift(M) + G - lift(project(G))) / (sqrt(V) + eps), then decoupled decay

The basis, of the shorter side, holds the gradient's leading singular vectors before updates 1, T, 2T, ... The sums are
those of rows or columns, so that the longer side remains, or of `subset_size` consecutive elements. As published, the
update at a refresh still uses the old M, in coordinates of the old basis, and M is zero after it;
`momentum_at_refresh` "reset" makes it zero before, "keep" keeps it (the released `overlap_state`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import Route, everything
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.settings import hyper
from .primitives import moments
from .primitives.blocks import kept_dim_shape, largest_divisor, subset_sum
from .primitives.steps import AdamStep
from .primitives.subspace import UNPROJECTED, SingularSubspace, SubspaceSettings, rank_of, refuse_rank, standard_side


@dataclass(frozen=True)
class SubspaceMomentumSettings(SubspaceSettings):
    """What AdamW-SNSM takes."""

    subset_size: int = hyper(0, "elements that share a second moment; 0: a row or column; -j: sqrt(elements)/j")
    momentum_at_refresh: str = hyper(
        "published",
        "the momentum when the basis is refreshed: zero after the update, zero before it, or kept",
        choices=("published", "reset", "keep"),
    )
    proj_type: str = hyper("svd", "how the basis is computed", choices=("svd",), flag=False)

    def check(self) -> None:
        super().check()
        if not self.beta1:
            raise ValueError("beta1=0: without momentum there is no subspace; use adamw_sn with beta1 0")


@dataclass(frozen=True)
class SubspaceMomentumStep(SingularSubspace):
    """AdamW-SNSM on one matrix. subset: elements of a flat subset; None: rows or columns."""

    h: SubspaceMomentumSettings
    subset: int | None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        statistic = kept_dim_shape(tuple(shape)) if self.subset is None else (shape.numel() // self.subset, 1)
        moment = StateSpec(self.projected_shape(shape), "moment")
        return {**self.basis_spec(shape), "exp_avg": moment, "exp_avg_sq": StateSpec(statistic, "second_moment")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        ends = self.h.momentum_at_refresh == "published" and step > 1 and step % self.gap == 0
        adam = moments.adam_scalars(step, self.h.beta1, self.h.beta2, self.h.correct_bias)
        return {**adam, "kept": 0.0 if ends else 1.0}

    def refresh_due(self, step: int, offset: int) -> bool:
        return step == 1 or (step + offset) % self.gap == 0

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        changed = SingularSubspace.refresh(self, grad, state, rng)
        if changed and self.h.momentum_at_refresh == "reset":
            state["exp_avg"].zero_()
        return changed

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        r = self.project(grad, state["basis"])
        m = moments.first_moment(state, r, self.h.beta1)
        numerator = grad + self.lift(m - r, state["basis"])
        m.mul_(s["kept"])
        if self.subset is None:
            v = moments.second_moment(state, subset_sum(grad * grad, state["exp_avg_sq"]), self.h.beta2)
            return moments.adam_direction(numerator, v, s, self.h.eps, eps_inside=False)
        flat = grad.reshape(-1, self.subset)
        v = moments.second_moment(state, (flat * flat).sum(dim=1, keepdim=True), self.h.beta2)
        numerator = numerator.reshape(-1, self.subset)
        return moments.adam_direction(numerator, v, s, self.h.eps, eps_inside=False).reshape(grad.shape)


class AdamWSNSM(EngineOptimizer[SubspaceMomentumSettings]):
    """AdamW-SNSM on the matrices of groups with a `rank`; AdamW with decay after the step elsewhere.

    A group may give subset_size as "heuristics" (0) and `overlap_state` (momentum_at_refresh "keep"), as released.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if param_group.get("subset_size") == "heuristics":
            param_group["subset_size"] = 0
        if param_group.pop("overlap_state", False):
            param_group["momentum_at_refresh"] = "keep"
        refuse_rank(param_group.get("rank", self.defaults["rank"]), param_group)
        super().add_param_group(param_group)

    own_rules = (SubspaceMomentumStep,)
    chosen_by = "matrices of groups with a rank"

    def rule_for(self, h: SubspaceMomentumSettings, param: Tensor) -> UpdateRule:
        if h.rank is None or param.ndim != 2:
            return AdamStep(h.beta1, h.beta2, h.eps, h.correct_bias)
        if self.options.stagger_refresh and h.momentum_at_refresh == "published":
            raise ValueError(
                "stagger_refresh: use momentum_at_refresh reset or keep; published is for one count of all"
            )
        size, subset = h.subset_size, None
        if size:
            wanted = int(math.sqrt(param.numel()) / -size) if size < 0 else size
            subset = largest_divisor(param.numel(), wanted)
        side, narrow = standard_side(param.shape), self.takes_narrow_products(param)
        return SubspaceMomentumStep(side, rank_of(h.rank, param.shape), h.update_proj_gap, narrow, h, subset)


_LINEARS = Route("linear weights", lambda p: p.linear and p.tensor.ndim == 2)
_ROUTES = (_LINEARS, Route("rest", everything, UNPROJECTED))
register(Method("adamw_snsm", "AdamW-SNSM: subset norm, and momentum in a subspace of each linear", AdamWSNSM, _ROUTES))
