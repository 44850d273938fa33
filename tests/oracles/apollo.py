"""APOLLO (arXiv 2412.05270, algorithm 1) and APOLLO-Mini: learning rates from a projected Adam, on the raw gradient."""

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
    "scale_front": False,
    "disable_nl": False,
    "rank": None,
    "proj": "random",
    "scale_type": "channel",
    "update_proj_gap": 200,
    "scale": 1.0,
}


class Apollo(ParameterOracle):
    """One matrix. `given`: the projection or basis that the class under test uses; a random one is taken as it is, of a
    singular one the signs."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.tall = weight.shape[0] >= weight.shape[1]
        self.given: Tensor | None = None
        self.basis: Basis | None = None
        self.limiter = GrowthLimiter()
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def oriented(self, tensor: Tensor) -> Basis:
        tensor = tensor.to(self.dtype)
        return Basis(None, tensor) if self.tall else Basis(tensor, None)

    def renew(self, gradient: Tensor) -> None:
        if self.s["proj"] == "random":
            self.basis = self.oriented(self.given)
        elif (self.t - 1) % self.s["update_proj_gap"] == 0:
            self.basis = basis_from_svd(gradient, self.s["rank"], "std")
            if self.given is not None:
                self.basis = align_signs(self.basis, self.oriented(self.given))

    def factors(self, step: Tensor, projected: Tensor) -> Tensor:
        """One for each channel, which is a row of a tall matrix and a column of a wide one, or one for the matrix."""
        if self.s["scale_type"] == "tensor":
            return step.pow(2).sum().sqrt() / (projected.pow(2).sum().sqrt() + 1e-8)
        along = 1 if self.tall else 0
        return step.pow(2).sum(along, keepdim=True).sqrt() / (projected.pow(2).sum(along, keepdim=True).sqrt() + 1e-8)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.renew(gradient)
        projected = self.basis.project(gradient)
        beta1, beta2 = self.s["betas"]
        zero = torch.zeros_like(projected)
        self.m = average(zero if self.m is None else self.m, projected, beta1)
        self.v = average(zero if self.v is None else self.v, projected**2, beta2)
        scaled = self.factors(self.m / (self.v.sqrt() + self.s["eps"]), projected) * gradient
        root = math.sqrt(self.s["scale"])
        if self.s["scale_front"]:
            scaled = root * scaled
        if not self.s["disable_nl"]:
            scaled = self.limiter.limit(scaled)
        if not self.s["scale_front"]:
            scaled = root * scaled
        bias = math.sqrt(1 - beta2**self.t) / (1 - beta1**self.t) if self.s["correct_bias"] else 1.0
        self.weight = self.weight - lr * bias * scaled
        self.decay(lr)


def oracle(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DEFAULTS, **settings}
    common = {"weight_decay": s["weight_decay"], "dtype": dtype}
    if s["rank"] is None or weight.dim() != 2:
        adam = {key: s[key] for key in ("betas", "eps", "correct_bias")}
        return PlainAdam(weight, eps_placement="before", decay_order="after", **adam, **common)
    return Apollo(weight, s, **common)
