"""GaLore: a weight optimizer in a low-rank space of the gradient (Zhao et al., arXiv 2403.03507).

Before updates 1, T+1, 2T+1, ... a basis is computed from the gradient by SVD (algorithm 2). The weight optimizer
sees the projected gradient R; its step is lifted and multiplied with `scale`. proj_type chooses the side: `std`
multiplies on the right when rows >= columns, else on the left; `reverse_std` the opposite; `left`, `right`; `full`
both; `random` uses the singular vectors of a random matrix. `continuous...` lives in online_subspace.py.

Deviations from the released code: mathematics in float32; a zero or non-finite gradient, or an SVD that fails,
keeps the old basis; the side is part of the rule instead of being guessed from shapes; bases are plain state
tensors. Optional: `basis_method="randomized"`, `stagger_refresh`, and `rotate_moments`, which carries the moments
into a new basis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .engine.rule import Bases, Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, hyper
from .primitives import projection as pr
from .primitives.steps import LionStep, WeightStep

SIDED_TYPES = ("std", "reverse_std", "left", "right", "random")
CONTINUOUS_TYPES = ("continuous", "continuous_adam8bit", "continuous_lion", "continuous_adafactor", "continuous_sgd")


@dataclass(frozen=True)
class ProjectionSettings(Settings):
    """What every method takes that projects gradients, beside what its weight optimizer takes."""

    # Groups of the released classes that state no rank are not projected.
    rank: int | None = hyper(
        128, "rank of the projected gradient; at most the smaller side of a matrix", at_least=1, released=None
    )
    update_proj_gap: int = hyper(200, "updates between two refreshes of the basis (T)", at_least=1)
    galore_scale: float = hyper(0.25, "factor on the lifted step", key="scale", flags=("scale",))
    proj_type: str = hyper(
        "std", "where the basis comes from and multiplies", choices=(*SIDED_TYPES, "full", *CONTINUOUS_TYPES)
    )
    basis_method: str = hyper("svd", "how a basis is computed", choices=("svd", "randomized"))
    rotate_moments: bool = hyper(False, "carry the moments into a new basis at a refresh")
    proj_orthogonality: float = hyper(
        0.0, "lambda of the orthogonality penalty of continuous bases (the paper: 0.1)", at_least=0.0
    )

    def check(self) -> None:
        continuous = self.proj_type in CONTINUOUS_TYPES
        if self.proj_orthogonality and not continuous:
            raise ValueError(f"proj_orthogonality belongs to continuous bases, not to proj_type {self.proj_type}")
        if self.rotate_moments and continuous:
            raise ValueError("rotate_moments belongs to refreshed bases; a continuous basis moves at every update")
        if self.rotate_moments and self.proj_type == "full":
            raise ValueError("rotate_moments is defined for one-sided projections, not for proj_type full")
        super().check()


@dataclass(frozen=True)
class ProjectedStep(UpdateRule):
    """A weight optimizer inside one projection of a matrix, on the `side` where the basis multiplies.

    narrow: large products take bfloat16 operands, as weights, gradients and the stored basis are anyway.
    """

    h: ProjectionSettings
    inner: WeightStep
    side: pr.Side
    narrow: bool = False

    @property
    def rank(self) -> int:
        """The rank of a group that has one."""
        assert self.h.rank is not None
        return self.h.rank

    @property
    def decay(self) -> Decay:  # type: ignore[override]
        return self.inner.decay

    @property
    def lr_inside(self) -> bool:  # type: ignore[override]
        return self.inner.lr_inside

    @property
    def lr_factor(self) -> float:
        return 1.0 if isinstance(self.inner, LionStep) else self.h.galore_scale  # of which a sign keeps nothing

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        projected = torch.Size(pr.projected_shape(tuple(shape), self.rank, self.side))
        basis = StateSpec(pr.basis_shape(tuple(shape), self.rank, self.side), "basis")
        return {"basis": basis, **self.inner.state(projected)}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return self.inner.scalars(step, lr_ratio)

    def compress(self, grad: Tensor, state: State) -> Tensor:
        return pr.project(grad, state["basis"], self.side, self.narrow)

    def lift(self, coordinates: Tensor, state: State) -> Tensor:
        """The matrix with these coordinates in the basis."""
        return pr.lift(coordinates, state["basis"], self.side, self.narrow)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        step = self.inner.direction(grad, state, s, first)
        return self.inner.after_lift(self.lift(step, state) * self.h.galore_scale)

    def refresh_due(self, step: int, offset: int) -> bool:
        return step == 1 or (step - 1 + offset) % self.h.update_proj_gap == 0

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        source = grad
        if self.h.proj_type == "random":  # the generator is the CPU's, whatever the default device
            source = torch.randn(grad.shape, generator=rng, device="cpu").to(grad.device)
        basis = self._basis(source, self.side, rng)
        if self.h.rotate_moments:
            rotate(state, basis, self.side)
        state["basis"].copy_(basis)
        return True

    def _basis(self, matrix: Tensor, side: pr.Side, rng: torch.Generator) -> Tensor:
        if self.h.basis_method == "randomized":
            return pr.randomized_basis(matrix, self.rank, side, rng)
        return pr.singular_basis(matrix, self.rank, side)

    def initialised(self, state: State) -> bool:
        return bool(state["basis"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], self.side)}


@dataclass(frozen=True)
class TwoSidedStep(ProjectedStep):
    """proj_type `full`: R = Ul' G Vr', lifted as Ul N Vr."""

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        r = pr.clamp_rank(tuple(shape), self.rank)
        return {
            "basis": StateSpec((shape[0], r), "basis"),
            "basis_right": StateSpec((r, shape[1]), "basis"),
            **self.inner.state(torch.Size((r, r))),
        }

    def compress(self, grad: Tensor, state: State) -> Tensor:
        inner = pr.project(grad, state["basis"], "left", self.narrow)
        return pr.project(inner, state["basis_right"], "right", self.narrow)

    def lift(self, coordinates: Tensor, state: State) -> Tensor:
        return pr.lift(pr.lift(coordinates, state["basis_right"], "right"), state["basis"], "left", self.narrow)

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        if self.h.basis_method == "randomized":
            left = self._basis(grad, "left", rng)
            right = self._basis(left.mT @ grad, "right", rng)
        else:
            left, right = pr.singular_bases(grad, self.rank)
        state["basis"].copy_(left)
        state["basis_right"].copy_(right)
        return True

    def initialised(self, state: State) -> bool:
        return super().initialised(state) and bool(state["basis_right"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], "left"), "basis_right": (state["basis_right"], "right")}


def rotate(state: State, new: Tensor, side: pr.Side) -> None:
    """Express the moments of the old basis in the new one, in place.

    m' = C m with C the change of basis; v' = |C^2 (v - m^2) + m'^2| elementwise: what LDAdam does (arXiv 2410.16103) to
    bias-corrected moments, here to the moments themselves.
    """
    old, m, v = state["basis"], state.get("exp_avg"), state.get("exp_avg_sq")
    change = old @ new.mT if side == "right" else new.mT @ old

    def apply(matrix: Tensor, c: Tensor) -> Tensor:
        return matrix @ c if side == "right" else c @ matrix

    if m is None:
        if v is not None:
            v.copy_(apply(v, change.square()).abs())
        return
    moved = apply(m, change)
    if v is not None:
        v.copy_((apply(v - m.square(), change.square()) + moved.square()).abs())
    m.copy_(moved)


def side_of(proj_type: str, shape: Iterable[int]) -> pr.Side:
    """The side on which a basis of this type multiplies a matrix of this shape."""
    rows, columns = shape
    if proj_type in ("left", "right"):
        return proj_type  # type: ignore[return-value]
    return "right" if (rows >= columns) != (proj_type == "reverse_std") else "left"
