"""AdamW-SNSM (arXiv 2411.07120): momentum in a subspace, the rest of the gradient raw, one second moment a subset."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.galore import Basis, align_signs, basis_from_svd
from tests.oracles.moments import average
from tests.oracles.parameter import ParameterOracle, PlainAdam

DEFAULTS = {
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "correct_bias": True,
    "rank": None,
    "update_proj_gap": 200,
    "subset_size": "heuristics",
    "momentum_at_refresh": "published",
}


class SubspaceMomentum(ParameterOracle):
    """One matrix. `given`: the basis of the class under test, whose signs are taken."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.tall = weight.shape[0] >= weight.shape[1]
        self.given: Tensor | None = None
        self.basis: Basis | None = None
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def refreshed(self, gradient: Tensor) -> bool:
        """A new basis before updates 1, T, 2T, ..."""
        if self.t != 1 and self.t % self.s["update_proj_gap"] != 0:
            return False
        self.basis = basis_from_svd(gradient, self.s["rank"], "std")
        if self.given is not None:
            given = self.given.to(self.dtype)
            self.basis = align_signs(self.basis, Basis(None, given) if self.tall else Basis(given, None))
        return self.t > 1

    def length(self) -> int | None:
        """Elements of a subset; None: rows of a tall matrix, columns of a wide one."""
        asked, numel = self.s["subset_size"], self.weight.numel()
        if asked in ("heuristics", 0):
            return None
        wanted = asked if asked > 0 else int(math.sqrt(numel) / -asked)
        return max(k for k in range(1, numel + 1) if numel % k == 0 and k <= max(wanted, 1))

    def divided(self, numerator: Tensor, gradient: Tensor) -> Tensor:
        length, beta2 = self.length(), self.s["betas"][1]
        shape = gradient.shape if length is None else (-1, length)
        along = 1 if length is not None or self.tall else 0
        sums = (gradient**2).reshape(shape).sum(along, keepdim=True)
        self.v = average(torch.zeros_like(sums) if self.v is None else self.v, sums, beta2)
        return (numerator.reshape(shape) / (self.v.sqrt() + self.s["eps"])).reshape(gradient.shape)

    def update(self, gradient: Tensor, lr: float) -> None:
        refreshed, kind = self.refreshed(gradient), self.s["momentum_at_refresh"]
        beta1, beta2 = self.s["betas"]
        projected = self.basis.project(gradient)
        if self.m is None or (refreshed and kind == "reset"):
            self.m = torch.zeros_like(projected)
        self.m = average(self.m, projected, beta1)
        numerator = self.basis.lift(self.m) + (gradient - self.basis.lift(projected))
        if refreshed and kind == "published":
            self.m = torch.zeros_like(projected)
        bias = math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t) if self.s["correct_bias"] else 1.0
        self.weight = self.weight - lr * bias * self.divided(numerator, gradient)
        self.decay(lr)


def oracle(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DEFAULTS, **settings}
    common = {"weight_decay": s["weight_decay"], "dtype": dtype}
    if s["rank"] is None or weight.dim() != 2:
        adam = {key: s[key] for key in ("betas", "eps", "correct_bias")}
        return PlainAdam(weight, eps_placement="before", decay_order="after", **adam, **common)
    return SubspaceMomentum(weight, s, **common)
