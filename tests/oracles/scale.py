"""SCALE (arXiv 2506.16659, algorithm 1): lines of the gradient at root mean square 1; momentum for the head alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracles.moments import Adam, average
from tests.oracles.parameter import ParameterOracle

DEFAULTS = {
    "wd": 0.0,
    "momentum": 0.9,
    "adam_lr": None,
    "adamw_betas": (0.9, 0.999),
    "adamw_eps": 1e-8,
    "col_dim": 1,
}


class Normalized(ParameterOracle):
    """A matrix; `momentum` None: of the gradient itself."""

    def __init__(self, weight: Tensor, momentum: float | None, axis: int, **common: Any):
        super().__init__(weight, **common)
        self.momentum, self.axis = momentum, axis
        self.m = torch.zeros_like(self.weight)

    def update(self, gradient: Tensor, lr: float) -> None:
        if self.momentum is not None:
            self.m = gradient = average(self.m, gradient, self.momentum)
        root = gradient.pow(2).mean(self.axis, keepdim=True).sqrt()
        self.decay(lr)
        self.weight = self.weight - lr * gradient / root.clamp_min(1e-8)


class RatedAdam(ParameterOracle):
    """AdamW whose rate, decay included, is another multiple of the schedule."""

    def __init__(self, weight: Tensor, ratio: float, betas: tuple[float, float], eps: float, **common: Any):
        super().__init__(weight, **common)
        self.ratio, self.adam = ratio, Adam(betas, eps, "before")

    def update(self, gradient: Tensor, lr: float) -> None:
        self.decay(lr * self.ratio)
        self.weight = self.weight - self.adam.step(gradient, self.t, lr * self.ratio)


def oracle(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DEFAULTS, **settings}
    common = {"weight_decay": s.get("weight_decay", s["wd"]), "dtype": dtype}
    if s["param_type"] == "oned_param":
        ratio = 1.0 if s["adam_lr"] is None else s["adam_lr"] / s["lr"]
        return RatedAdam(weight, ratio, s["adamw_betas"], s["adamw_eps"], **common)
    momentum = s["momentum"] if s["param_type"] == "secondary_param" else None
    return Normalized(weight, momentum, s["col_dim"], **common)
