"""The weight optimizers' inner arithmetic, on whatever matrix they are shown (a gradient or its projection)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.oracles.quantization import BlockwiseTensor

SMALLEST_QUANTIZED = 4096  # elements; below this 8-bit optimizers keep float32


def average(old: Tensor, new: Tensor, beta: float) -> Tensor:
    """E[.]_beta: beta * old + (1 - beta) * new."""
    return beta * old + (1 - beta) * new


class Adam:
    """First and second moment of one matrix; `eps_placement` is "before" or "after" the bias correction of v."""

    def __init__(self, betas: tuple[float, float], eps: float, eps_placement: str, correct_bias: bool = True):
        self.beta1, self.beta2 = betas
        self.eps, self.eps_placement, self.correct_bias = eps, eps_placement, correct_bias
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def second_moment_target(self, gradient: Tensor) -> Tensor:
        """What v averages: the squared gradient, elementwise; block methods override."""
        return gradient**2

    def remember(self, gradient: Tensor) -> None:
        target = self.second_moment_target(gradient)
        if self.m is None:
            self.m, self.v = torch.zeros_like(gradient), torch.zeros_like(target)
        self.m = average(self.m, gradient, self.beta1)
        self.v = average(self.v, target, self.beta2)

    def step(self, gradient: Tensor, t: int, lr: float) -> Tensor:
        """What update t (from 1) subtracts from the weight, before it is lifted."""
        self.remember(gradient)
        c1, c2 = (1 - self.beta1**t, 1 - self.beta2**t) if self.correct_bias else (1.0, 1.0)
        if self.eps_placement == "before":
            return lr * math.sqrt(c2) / c1 * self.m / (self.v.sqrt() + self.eps)
        return lr / c1 * self.m / (self.v.sqrt() / math.sqrt(c2) + self.eps)


class Adam8bit(Adam):
    """Adam whose moments are stored in 8 bits between updates; the step uses the values before storing."""

    def __init__(self, betas: tuple[float, float], eps: float):
        super().__init__(betas, eps, "after")

    def step(self, gradient: Tensor, t: int, lr: float) -> Tensor:
        step = super().step(gradient, t, lr)
        if gradient.numel() >= SMALLEST_QUANTIZED:
            self.m = BlockwiseTensor(self.m, signed=True).values()
            self.v = BlockwiseTensor(self.v, signed=False).values()
        return step


class Adafactor:
    """Factored second moment of one matrix (unfactored for vectors), clipped update, optional first moment."""

    def __init__(
        self,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
    ):
        self.eps, self.clip_threshold, self.decay_rate, self.beta1 = eps, clip_threshold, decay_rate, beta1
        self.v: dict[str, Tensor] = {}
        self.m: Tensor | None = None

    def _averaged(self, name: str, new: Tensor, beta: float) -> Tensor:
        self.v[name] = average(self.v.get(name, torch.zeros_like(new)), new, beta)
        return self.v[name]

    def step(self, gradient: Tensor, t: int, lr: float) -> Tensor:
        """What update t subtracts, before it is lifted. With beta1 the average is over lr * update."""
        beta2 = 1 - t**self.decay_rate
        u = gradient**2 + self.eps
        if gradient.dim() == 2:
            row = self._averaged("row", u.mean(dim=1), beta2)
            column = self._averaged("column", u.mean(dim=0), beta2)
            v = row[:, None] * column[None, :] / row.mean()
        else:
            v = self._averaged("full", u, beta2)
        update = gradient / v.sqrt()
        rms = update.pow(2).mean().sqrt().item()
        update = lr * update / max(1.0, rms / self.clip_threshold)
        if self.beta1 is not None:
            self.m = average(torch.zeros_like(update) if self.m is None else self.m, update, self.beta1)
            update = self.m
        return update


class Lion:
    """Interpolated sign. `interpolate` leaves the sign and lr to the caller, who lifts first."""

    def __init__(self, betas: tuple[float, float]):
        self.beta1, self.beta2 = betas
        self.m: Tensor | None = None

    def interpolate(self, gradient: Tensor) -> Tensor:
        if self.m is None:
            self.m = torch.zeros_like(gradient)
        interpolation = average(self.m, gradient, self.beta1)
        self.m = average(self.m, gradient, self.beta2)
        return interpolation
