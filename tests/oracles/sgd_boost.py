"""SGD-Boost, published later as SGD-SaI (arXiv 2412.11768): a gain per tensor from its first gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.oracles.parameter import ParameterOracle


def gain_of(gradient: Tensor, eps: float) -> float:
    """||G||_2 / (unbiased standard deviation of all entries + eps); 1 for a single element."""
    flat = gradient.reshape(-1)
    if flat.numel() == 1:
        return 1.0
    deviation = math.sqrt(((flat - flat.mean()) ** 2).sum().item() / (flat.numel() - 1))
    return flat.pow(2).sum().sqrt().item() / (deviation + eps)


class SGDBoost(ParameterOracle):
    """Momentum starts as the first gradient; decay before the step."""

    def __init__(self, weight: Tensor, *, momentum: float, eps: float, gain: float | None = None, **common):
        super().__init__(weight, **common)
        self.momentum, self.eps, self.gain = momentum, eps, gain
        self.buffer: Tensor | None = None

    def update(self, gradient: Tensor, lr: float) -> None:
        if self.gain is None:
            if not torch.any(gradient != 0):
                self.decay(lr)
                return
            self.gain = gain_of(gradient, self.eps)
        if self.buffer is None:
            self.buffer = gradient.clone()
        else:
            self.buffer = self.momentum * self.buffer + (1 - self.momentum) * gradient
        self.decay(lr)
        self.weight = self.weight - lr * self.gain * self.buffer
