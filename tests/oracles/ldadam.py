"""LDAdam (arXiv 2410.16103): Adam on a subspace that moves every step, with error feedback.

Written for a projection on the left, B (rows, r), R = B'G; the right side is the same method on the transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.parameter import ParameterOracle


class LDAdam(ParameterOracle):
    """One low-rank parameter. `proj_method` is "power_iteration", "svd", or "given": the basis of the optimizer under
    test, transposed like the gradient, for methods that draw random numbers.

    `step` takes the new gradient alone; the error it must add is this object's own `error`.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        rank: int,
        rho: float,
        betas: tuple[float, float],
        eps: float,
        proj_method: str = "power_iteration",
        error_feedback: bool = True,
        **common,
    ):
        super().__init__(weight, **common)
        self.right = weight.shape[0] > weight.shape[1]
        self.rank = min(rank, *weight.shape)
        self.rho, self.eps = rho, eps
        self.beta1, self.beta2 = betas
        self.proj_method, self.error_feedback = proj_method, error_feedback
        self.basis: Tensor | None = None
        self.m: Tensor | None = None
        self.v: Tensor | None = None
        self.error = torch.zeros_like(self.weight)
        self.given: Tensor | None = None
        self.smallest_carried = torch.inf

    def update(self, gradient: Tensor, lr: float) -> None:
        g = gradient + self.error
        g = g.T if self.right else g
        self.decay(lr)
        lifted_old = 0.0 if self.t == 1 else self.basis @ self.m
        if self.t == 1:
            self.basis = self._first_basis(g)
            self.m = torch.zeros(self.rank, g.shape[1], dtype=self.dtype)
            self.v = torch.zeros_like(self.m)
        else:
            self._change_basis(g, lifted_old)
        r = self.basis.T @ g
        if self.error_feedback:
            lost = lifted_old - self.basis @ self.m
            error = g - self.basis @ r + self.beta1 / (1 - self.beta1) * lost
            self.error = error.T if self.right else error
        self._adam(r, lr)

    def _first_basis(self, g: Tensor) -> Tensor:
        return self._svd_basis(g) if self.proj_method != "given" else self.given

    def _svd_basis(self, matrix: Tensor) -> Tensor:
        return torch.linalg.svd(matrix, full_matrices=False)[0][:, : self.rank]

    def _next_basis(self, target: Tensor) -> Tensor:
        if self.proj_method == "given":
            return self.given
        if self.proj_method == "svd":
            return self._svd_basis(target)
        return torch.linalg.qr(target @ (target.T @ self.basis))[0]

    def _change_basis(self, g: Tensor, lifted_old: Tensor) -> None:
        done = self.t - 1
        c1, c2 = 1 - self.beta1**done, 1 - self.beta2**done
        target = self.rho * lifted_old / c1 + (1 - self.rho) * g
        new = self._next_basis(target)
        change = new.T @ self.basis
        m = change @ self.m
        variance = self.v / c2 - (self.m / c1) ** 2
        carried = change**2 @ variance + (m / c1) ** 2
        self.smallest_carried = min(self.smallest_carried, carried.min().item())
        self.v = carried.abs() * c2
        self.m, self.basis = m, new

    def _adam(self, r: Tensor, lr: float) -> None:
        c1, c2 = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        self.m = self.beta1 * self.m + (1 - self.beta1) * r
        self.v = self.beta2 * self.v + (1 - self.beta2) * r**2
        step = self.basis @ ((self.m / c1) / ((self.v / c2).sqrt() + self.eps))
        self.weight = self.weight - lr * (step.T if self.right else step)
