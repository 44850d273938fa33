"""LDAdam: Adam on a subspace that moves at every update, with error feedback (Robert et al., arXiv 2410.16103).

Right side when rows > columns, left otherwise. G is the new gradient plus the error left by the previous update.
Update 1 takes the basis B from an SVD of G. Later, with t0 updates done (algorithm 1):

    b = rho lift(m)/(1 - beta1^t0) + (1 - rho) G         the target; B_new by one power iteration (or SVD) from it
    r = project(G), C the change of basis, m' = rotated m
    E = G - lift(r) + beta1/(1 - beta1) (lift_old(m) - lift(m'))      kept for the next update
    v' = | C^2 [v/c2(t0) - (m/c1(t0))^2] + (m'/c1(t0))^2 | c2(t0)
    then Adam on r with m', v'; decay before; W <- W - lr lift((m/c1) / (sqrt(v/c2) + eps)).

Deviations from the released code: six large products instead of eight (lift(r) and lift(m') are one product;
lift_old(m) is already in b); the error lives in the optimizer state instead of `.grad`, so that checkpoints hold it
and clipping and logged norms see the new gradient only; group settings stay in their group; mathematics in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import body_routes
from .engine.rule import Bases, Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import beta, hyper
from .primitives import moments
from .primitives import projection as pr
from .primitives.products import product
from .primitives.steps import AdamSettings, AdamStep


@dataclass(frozen=True)
class LDAdamSettings(AdamSettings):
    """What LDAdam takes."""

    beta1: float = beta(0.908, "decay of the momentum", key="betas", flags=("adam_beta1",))
    beta2: float = beta(0.99, "decay of the second moment", key="betas")
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied before the step", at_least=0.0)
    rank: int = hyper(16, "rank of the subspace; at most the smaller side of a matrix", at_least=1)
    rho: float = beta(0.908, "weight of the momentum in the target that the new basis follows")
    proj_type: str = hyper("std", "side of the basis", choices=("std", "reverse_std", "left", "right"))
    proj_method: str = hyper(
        "power_iteration", "how the basis follows its target", choices=("power_iteration", "svd", "svd_lowrank")
    )
    error_feedback: bool = hyper(True, "keep what the projection lost for the next update")
    enable_lowrank: bool = hyper(False, "whether matrices of the group are projected", flag=False)


@dataclass(frozen=True)
class LowDimensionalStep(UpdateRule):
    """LDAdam on one matrix (arXiv 2410.16103, algorithm 1).

    narrow: large products take bfloat16 operands, as weights, gradients and the stored basis are anyway; what that
    loses of the gradient is part of the error that is fed back.
    """

    decay: ClassVar[Decay] = "before"
    moves_basis: ClassVar[bool] = True
    projects_last: ClassVar[bool] = True
    h: LDAdamSettings
    side: pr.Side
    narrow: bool = False

    @property
    def compilable(self) -> bool:  # type: ignore[override]
        return self.h.proj_method == "power_iteration"

    @property
    def accumulator(self) -> str | None:  # type: ignore[override]
        return "error" if self.h.error_feedback else None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        projected = pr.projected_shape(tuple(shape), self.h.rank, self.side)
        specs = {
            "basis": StateSpec(pr.basis_shape(tuple(shape), self.h.rank, self.side), "basis"),
            "exp_avg": StateSpec(projected, "moment"),
            "exp_avg_sq": StateSpec(projected, "second_moment"),
        }
        return {**specs, "error": StateSpec(tuple(shape), "residual")} if self.h.error_feedback else specs

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        before = moments.adam_scalars(max(step - 1, 1), self.h.beta1, self.h.beta2)
        old = {"old_inverse_c1": before["inverse_c1"], "old_c2": before["inverse_root_c2"] ** -2}
        return {**moments.adam_scalars(step, self.h.beta1, self.h.beta2), **old}

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        state["basis"].copy_(self._decompose(grad, state["basis"]))
        return True

    def initialised(self, state: State) -> bool:
        return bool(state["basis"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], self.side)}

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        if opening:
            state["error"].mul_(share)
        state["error"].add_(grad)

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        if self.h.error_feedback:
            grad = state["error"].clone() if grad is None else grad + state["error"]
        assert grad is not None
        carried = torch.zeros((), device=grad.device) if first else self._move(grad, state, s)
        basis, m, v = state["basis"], state["exp_avg"], state["exp_avg_sq"]
        coordinates = pr.project(grad, basis, self.side, self.narrow)
        if self.h.error_feedback:
            share = self.h.beta1 / (1.0 - self.h.beta1)
            kept = pr.lift(coordinates + share * m, basis, self.side, self.narrow)
            state["error"].copy_(grad - kept + share * carried)
        m = moments.first_moment(state, coordinates, self.h.beta1)
        v = moments.second_moment(state, coordinates * coordinates, self.h.beta2)
        step = moments.adam_direction(m, v, s, self.h.eps, eps_inside=True)
        return pr.lift(step, basis, self.side, self.narrow)

    def _move(self, grad: Tensor, state: State, s: Scalars) -> Tensor:
        """Take the new basis and rotate the moments into it; returns lift_old(m)."""
        old, m, v = state["basis"], state["exp_avg"], state["exp_avg_sq"]
        carried = pr.lift(m, old, self.side, self.narrow)
        target = carried * (self.h.rho * s["old_inverse_c1"]) + grad * (1.0 - self.h.rho)
        iterates = self.h.proj_method == "power_iteration"
        new = pr.power_iteration(target, old, self.side, self.narrow) if iterates else self._decompose(target, old)
        change = product(old, new.mT) if self.side == "right" else product(new.mT, old)

        def rotate(matrix: Tensor, c: Tensor) -> Tensor:
            return product(matrix, c) if self.side == "right" else product(c, matrix)

        moved = rotate(m, change)
        mean_square = (m * s["old_inverse_c1"]).square()
        variance = rotate(v / s["old_c2"] - mean_square, change.square())
        v.copy_((variance + (moved * s["old_inverse_c1"]).square()).abs() * s["old_c2"])
        m.copy_(moved)
        old.copy_(new)
        return carried

    def _decompose(self, matrix: Tensor, old: Tensor) -> Tensor:
        if self.h.proj_method != "svd_lowrank":
            return pr.singular_basis(matrix, self.h.rank, self.side)
        with torch.random.fork_rng(devices=[]):
            # svd_lowrank draws from the global generator; a fixed seed makes a resumed run the same run.
            torch.manual_seed(0)
            u, _, v = torch.svd_lowrank(matrix, q=pr.clamp_rank(matrix.shape, self.h.rank))
        return (v.mT if self.side == "right" else u).contiguous()


def _side(proj_type: str, shape: torch.Size) -> pr.Side:
    if proj_type in ("left", "right"):
        return proj_type  # type: ignore[return-value]
    return "right" if (shape[0] > shape[1]) != (proj_type == "reverse_std") else "left"


class LDAdamW(EngineOptimizer[LDAdamSettings]):
    """LDAdam on matrices of groups with `enable_lowrank=True`; AdamW with the same order of operations elsewhere.

    Group keys: enable_lowrank, rank, rho, proj_type ("std"). error_feedback=False drops the error buffer.
    """

    own_rules = (LowDimensionalStep,)
    chosen_by = "matrices of groups with enable_lowrank=True"

    def rule_for(self, h: LDAdamSettings, param: Tensor) -> UpdateRule:
        if not h.enable_lowrank or param.ndim != 2:
            return AdamStep(h.beta1, h.beta2, h.eps, eps_inside=True, decays_first=True)
        return LowDimensionalStep(h, _side(h.proj_type, param.shape), self.takes_narrow_products(param))


register(
    Method(
        "ldadamw",
        "LDAdam: Adam on a low-rank subspace that follows the gradient, with error feedback",
        LDAdamW,
        body_routes(enable_lowrank=True),
        aliases=("ldadam",),
    )
)
