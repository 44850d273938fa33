"""What every oracle shares: a float64 weight, a count of updates, and plain (unprojected) optimizers of it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.moments import Adafactor, Adam, Adam8bit, Lion


class ParameterOracle:
    """One parameter under one method. `step` counts the update and hands it to the subclass's `update`."""

    def __init__(self, weight: Tensor, *, weight_decay: float = 0.0, dtype: torch.dtype = torch.float64):
        self.weight = weight.detach().to(dtype).clone()
        self.weight_decay = weight_decay
        self.dtype = dtype
        self.t = 0

    def step(self, gradient: Tensor, lr: float) -> None:
        self.t += 1
        self.update(gradient.detach().to(self.dtype), lr)

    def update(self, gradient: Tensor, lr: float) -> None:
        raise NotImplementedError

    def decay(self, lr: float) -> None:
        self.weight = self.weight * (1 - lr * self.weight_decay)


class PlainAdam(ParameterOracle):
    """Adam on the whole tensor with decoupled decay "before" or "after" the update."""

    def __init__(
        self,
        weight: Tensor,
        *,
        betas: tuple[float, float],
        eps: float,
        eps_placement: str,
        decay_order: str,
        correct_bias: bool = True,
        **common,
    ):
        super().__init__(weight, **common)
        self.adam = Adam(betas, eps, eps_placement, correct_bias)
        self.decay_order = decay_order

    def update(self, gradient: Tensor, lr: float) -> None:
        if self.decay_order == "before":
            self.decay(lr)
        self.weight = self.weight - self.adam.step(gradient, self.t, lr)
        if self.decay_order == "after":
            self.decay(lr)


class PlainAdam8bit(ParameterOracle):
    """bitsandbytes' AdamW8bit: decay before, eps after the bias correction."""

    def __init__(self, weight: Tensor, *, betas: tuple[float, float], eps: float, **common):
        super().__init__(weight, **common)
        self.adam = Adam8bit(betas, eps)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.decay(lr)
        self.weight = self.weight - self.adam.step(gradient, self.t, lr)


class PlainAdafactor(ParameterOracle):
    """Adafactor with a given learning rate; decay comes first, on the old weight."""

    def __init__(
        self,
        weight: Tensor,
        *,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        **common,
    ):
        super().__init__(weight, **common)
        self.adafactor = Adafactor(eps, clip_threshold, decay_rate, beta1)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.decay(lr)
        self.weight = self.weight - self.adafactor.step(gradient, self.t, lr)


class PlainLion(ParameterOracle):
    """Lion on the whole tensor, decay after. `closest_to_flip` is the smallest |interpolation| each entry had,
    relative to the largest of its update: a reading near rounding means that the entry's sign is undecided."""

    def __init__(self, weight: Tensor, *, betas: tuple[float, float], **common):
        super().__init__(weight, **common)
        self.lion = Lion(betas)
        self.closest_to_flip = torch.full_like(self.weight, torch.inf)

    def update(self, gradient: Tensor, lr: float) -> None:
        interpolation = self.lion.interpolate(gradient)
        relative = interpolation.abs() / interpolation.abs().max().clamp_min(1e-300)
        self.closest_to_flip = torch.minimum(self.closest_to_flip, relative)
        self.weight = self.weight - lr * torch.sign(interpolation)
        self.decay(lr)
