"""Rules that look at a matrix through a subspace of its shorter side, the longer one being kept ("std")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.rule import Bases, State, StateSpec, UpdateRule
from ..engine.settings import hyper
from . import projection as pr
from .steps import HuggingFaceAdamSettings


def standard_side(shape: Iterable[int]) -> pr.Side:
    """Right where there are at least as many rows as columns, else left."""
    rows, columns = shape
    return "right" if rows >= columns else "left"


@dataclass(frozen=True)
class SubspaceSettings(HuggingFaceAdamSettings):
    """What methods with a subspace of each matrix take."""

    rank: int | None = hyper(-4, "rank of the subspace; -j: the shorter side / j", released=None)
    update_proj_gap: int = hyper(200, "updates between two renewals of the subspace (T)", at_least=1)

    def check(self) -> None:
        if self.rank == 0:
            raise ValueError("rank=0: give a positive rank, or -j for the shorter side / j")


def rank_of(rank: int, shape: Iterable[int]) -> int:
    """The rank for a matrix of this shape."""
    return rank if rank > 0 else max(1, min(shape) // -rank)


def refuse_rank(rank: int | None, group: Mapping[str, Any]) -> None:
    """Raise ValueError when the rank of a group that a model was routed to is above the shorter side of a matrix.

    Groups made by hand may: a basis then has as many vectors as the matrix allows, as released.
    """
    if rank is None or "route" not in group:
        return
    for name, param in group["params"]:
        if rank > min(param.shape):
            shape = " x ".join(map(str, param.shape))
            raise ValueError(f"rank={rank}: {name} is {shape}; give a rank of at most {min(param.shape)}")


UNPROJECTED = {"rank": None}
"""Group keys of parameters that are not projected."""


@dataclass(frozen=True)
class OneSided(UpdateRule):
    """A matrix and the side on which its projection multiplies. gap: updates from one projection to the next.

    narrow: large products take bfloat16 operands, as weights, gradients and the stored basis are anyway.
    """

    side: pr.Side
    rank: int
    gap: int
    narrow: bool

    @property
    def across(self) -> int:
        """The dimension of the projected matrix that has the length of the rank."""
        return 1 if self.side == "right" else 0

    def project(self, matrix: Tensor, basis: Tensor) -> Tensor:
        """Coordinates of the matrix."""
        return pr.project(matrix, basis, self.side, self.narrow)

    def lift(self, coordinates: Tensor, basis: Tensor) -> Tensor:
        """The matrix with these coordinates."""
        return pr.lift(coordinates, basis, self.side, self.narrow)


@dataclass(frozen=True)
class SingularSubspace(OneSided):
    """The span of the gradient's leading singular vectors, renewed before updates 1, T+1, 2T+1, ..."""

    def basis_spec(self, shape: torch.Size) -> dict[str, StateSpec]:
        """The description of the basis."""
        return {"basis": StateSpec(pr.basis_shape(tuple(shape), self.rank, self.side), "basis")}

    def projected_shape(self, shape: torch.Size) -> tuple[int, int]:
        """The shape of the projected matrix."""
        return pr.projected_shape(tuple(shape), self.rank, self.side)

    def refresh_due(self, step: int, offset: int) -> bool:
        return step == 1 or (step - 1 + offset) % self.gap == 0

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        state["basis"].copy_(pr.singular_basis(grad, self.rank, self.side))
        return True

    def initialised(self, state: State) -> bool:
        return bool(state["basis"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], self.side)}
