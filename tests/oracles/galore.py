"""GaLore (arXiv 2403.03507): a weight optimizer shown the projection of the gradient, its step lifted back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.moments import Adafactor, Adam, Adam8bit, Lion
from tests.oracles.parameter import ParameterOracle


@dataclass
class Basis:
    """Orthonormal columns on the left (rows, r) and orthonormal rows on the right (r, columns); one may be absent."""

    left: Tensor | None
    right: Tensor | None

    def project(self, matrix: Tensor) -> Tensor:
        """G (rows, columns) to R."""
        projected = matrix if self.left is None else self.left.T @ matrix
        return projected if self.right is None else projected @ self.right.T

    def lift(self, low_rank: Tensor) -> Tensor:
        """R's shape back to G's."""
        lifted = low_rank if self.left is None else self.left @ low_rank
        return lifted if self.right is None else lifted @ self.right


def sides(proj_type: str, shape: torch.Size) -> tuple[bool, bool]:
    """Whether the projection acts on (left, right). Everything but the fixed sides follows rows >= columns."""
    tall = shape[0] >= shape[1]
    if proj_type == "full":
        return True, True
    right = {"left": False, "right": True, "reverse_std": not tall}.get(proj_type, tall)
    return not right, right


def basis_from_svd(matrix: Tensor, rank: int, proj_type: str) -> Basis:
    """The leading singular vectors of `matrix` on the sides that `proj_type` names; rank is cut to min(shape)."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    left, right = sides(proj_type, matrix.shape)
    return Basis(u[:, :rank].clone() if left else None, vt[:rank].clone() if right else None)


def align_signs(basis: Basis, reference: Basis) -> Basis:
    """`basis` with each singular vector turned to point as in `reference`: an SVD leaves the sign open, and moments
    kept over a refresh depend on it."""
    left, right = basis.left, basis.right
    if left is not None:
        left = left * torch.sign((left * reference.left.to(left)).sum(dim=0, keepdim=True))
    if right is not None:
        right = right * torch.sign((right * reference.right.to(right)).sum(dim=1, keepdim=True))
    return Basis(left, right)


class GaLore(ParameterOracle):
    """Any inner optimizer in a low-rank space.

    `inner` is Adam, Adam8bit, Adafactor or Lion; Lion's sign is taken after lifting, Adafactor decays before the
    update, everybody else after. `step` may be given the basis that the optimizer under test holds: for `random`
    it is used as it is (the draw is free), otherwise only its signs are.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        inner: Adam | Adam8bit | Adafactor | Lion,
        rank: int,
        update_proj_gap: int,
        scale: float,
        proj_type: str = "std",
        **common,
    ):
        super().__init__(weight, **common)
        self.inner, self.rank, self.gap, self.scale, self.proj_type = (
            inner,
            rank,
            update_proj_gap,
            scale,
            proj_type,
        )
        self.basis: Basis | None = None
        self.closest_to_flip = torch.full_like(self.weight, torch.inf)

    def step(self, gradient: Tensor, lr: float, reference: Basis | None = None) -> None:
        self.reference = reference
        super().step(gradient, lr)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.refresh(gradient)
        low_rank = self.basis.project(gradient)
        if isinstance(self.inner, Lion):
            step = self.signed_step(self.inner.interpolate(low_rank), lr)
        else:
            step = self.scale * self.basis.lift(self.inner.step(low_rank, self.t, lr))
        if isinstance(self.inner, Adafactor):
            self.decay(lr)
            self.weight = self.weight - step
        else:
            self.weight = self.weight - step
            self.decay(lr)

    def signed_step(self, interpolation: Tensor, lr: float) -> Tensor:
        lifted = self.scale * self.basis.lift(interpolation)
        relative = lifted.abs() / lifted.abs().max().clamp_min(1e-300)
        self.closest_to_flip = torch.minimum(self.closest_to_flip, relative)
        return lr * torch.sign(lifted)

    def refresh(self, gradient: Tensor) -> None:
        """A new basis before updates 1, T + 1, 2T + 1, ..."""
        if (self.t - 1) % self.gap != 0:
            return
        if self.proj_type == "random":
            self.basis = Basis(
                *(None if side is None else side.to(self.dtype) for side in (self.reference.left, self.reference.right))
            )
            return
        self.basis = basis_from_svd(gradient, self.rank, self.proj_type)
        if self.reference is not None:
            self.basis = align_signs(self.basis, self.reference)
