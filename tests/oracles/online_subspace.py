"""Online Subspace Descent (arXiv 2408.12857): GaLore whose basis takes one step of online PCA per update.

The basis gradient comes from autograd through the n x n projector, exactly as the paper writes the objective.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.galore import Basis, GaLore, align_signs, basis_from_svd
from tests.oracles.moments import Adafactor, Adam, Adam8bit, Lion


def objective(basis: Tensor, gradient: Tensor, right: bool, orthogonality: float) -> Tensor:
    """|| H P'P - H ||_F^2 with P (r, columns) on the right, || P P'H - H ||_F^2 with P (rows, r) on the left."""
    norm = gradient.norm()
    if norm == 0:
        return (basis * 0).sum()
    h = gradient / norm
    if right:
        reconstruction, gram = h @ (basis.T @ basis), basis @ basis.T
    else:
        reconstruction, gram = (basis @ basis.T) @ h, basis.T @ basis
    identity = torch.eye(gram.shape[0], dtype=gram.dtype)
    return (reconstruction - h).pow(2).sum() + orthogonality * (gram - identity).pow(2).sum()


def basis_gradient(basis: Tensor, gradient: Tensor, right: bool, orthogonality: float = 0.0) -> Tensor:
    """d objective / d P."""
    variable = basis.detach().clone().requires_grad_(True)
    objective(variable, gradient, right, orthogonality).backward()
    return variable.grad


class BasisOptimizer:
    """The optimizer of P that `continuous[_NAME]` names."""

    def __init__(self, name: str):
        self.name = name
        self.t = 0
        self.weight_decay = 0.01 if name == "adamw" else 0.0
        self.closest_to_flip = torch.inf
        self.inner = {
            "adamw": lambda: Adam((0.9, 0.999), 1e-8, "after"),
            "adam8bit": lambda: Adam8bit((0.9, 0.999), 1e-8),
            "lion": lambda: Lion((0.9, 0.99)),
            "adafactor": lambda: Adafactor(),
            "sgd": lambda: None,
        }[name]()

    def step(self, basis: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """P after one step."""
        self.t += 1
        if self.inner is None:
            return basis - lr * gradient
        if isinstance(self.inner, Lion):
            interpolation = self.inner.interpolate(gradient)
            self._note_signs(interpolation)
            return basis - lr * torch.sign(interpolation)
        if self.t == 1:
            self._note_signs(gradient)
        return basis * (1 - lr * self.weight_decay) - self.inner.step(gradient, self.t, lr)

    def _note_signs(self, values: Tensor) -> None:
        """A step that is the sign of `values` (Lion's, and anybody's first) is undecided where they are rounding
        noise; the objective's gradient is that of a matrix of norm 1, so noise has an absolute size."""
        self.closest_to_flip = min(self.closest_to_flip, values.abs().min().item())


class OnlineSubspace(GaLore):
    """The same weight optimizers as GaLore, on a basis that moves after every update but the first."""

    def __init__(self, weight: Tensor, *, initial_lr: float, orthogonality: float = 0.0, **settings):
        super().__init__(weight, **settings)
        name = self.proj_type.removeprefix("continuous").removeprefix("_") or "adamw"
        self.basis_optimizer = BasisOptimizer(name)
        self.initial_lr, self.orthogonality = initial_lr, orthogonality

    def refresh(self, gradient: Tensor) -> None:
        if self.t == 1:
            self.basis = basis_from_svd(gradient, self.rank, "std")
            if self.reference is not None:
                self.basis = align_signs(self.basis, self.reference)

    def update(self, gradient: Tensor, lr: float) -> None:
        super().update(gradient, lr)
        if self.t > 1:
            self.move_basis(gradient, lr)

    def move_basis(self, gradient: Tensor, lr: float) -> None:
        right = self.basis.right is not None
        present = self.basis.right if right else self.basis.left
        slope = basis_gradient(present, gradient, right, self.orthogonality)
        moved = self.basis_optimizer.step(present, slope, lr / self.initial_lr / self.gap)
        self.basis = Basis(None, moved) if right else Basis(moved, None)
