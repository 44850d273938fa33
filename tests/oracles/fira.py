"""Fira (arXiv 2410.01623, algorithm 1), with the residual of the released code: G - alpha lift(R)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.galore import Basis, align_signs, basis_from_svd
from tests.oracles.limiter import GrowthLimiter
from tests.oracles.moments import average
from tests.oracles.parameter import ParameterOracle, PlainAdam

DEFAULTS = {
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "correct_bias": True,
    "rank": None,
    "update_proj_gap": 200,
    "alpha": 0.25,
}


class Fira(ParameterOracle):
    """One matrix. `given`: the basis of the class under test, whose signs are taken."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.tall = weight.shape[0] >= weight.shape[1]
        self.given: Tensor | None = None
        self.basis: Basis | None = None
        self.limiter = GrowthLimiter()
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def renew(self, gradient: Tensor) -> None:
        if (self.t - 1) % self.s["update_proj_gap"] != 0:
            return
        self.basis = basis_from_svd(gradient, self.s["rank"], "std")
        if self.given is not None:
            given = self.given.to(self.dtype)
            self.basis = align_signs(self.basis, Basis(None, given) if self.tall else Basis(given, None))

    def update(self, gradient: Tensor, lr: float) -> None:
        self.renew(gradient)
        alpha, (beta1, beta2) = self.s["alpha"], self.s["betas"]
        projected = self.basis.project(gradient)
        zero = torch.zeros_like(projected)
        self.m = average(zero if self.m is None else self.m, projected, beta1)
        self.v = average(zero if self.v is None else self.v, projected**2, beta2)
        step = self.m / (self.v.sqrt() + self.s["eps"])
        along = 1 if self.tall else 0
        sizes = [x.pow(2).sum(along, keepdim=True).sqrt() for x in (step, projected)]
        unseen = sizes[0] / (sizes[1] + 1e-8) * (gradient - alpha * self.basis.lift(projected))
        bias = math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t) if self.s["correct_bias"] else 1.0
        self.weight = self.weight - lr * bias * (alpha * self.basis.lift(step) + self.limiter.limit(unseen))
        self.decay(lr)


def oracle(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DEFAULTS, **settings}
    common = {"weight_decay": s["weight_decay"], "dtype": dtype}
    if s["rank"] is None or weight.dim() != 2:
        adam = {key: s[key] for key in ("betas", "eps", "correct_bias")}
        return PlainAdam(weight, eps_placement="before", decay_order="after", **adam, **common)
    return Fira(weight, s, **common)
