"""SGD-Boost, later SGD-SaI: a learning-rate scale from the first gradient (Xu et al., arXiv 2412.11768).

Once for each parameter, from its first non-zero gradient: gain = ||G||_2 / (std(G) + eps), unbiased std over the whole
tensor. buffer = G on the first update, E[G]_momentum later; W <- W (1 - lr wd) - lr gain buffer.

Deviations from the released code: the gain is state, saved and loaded; a parameter whose first gradient comes late
or is zero gets its own gain then; one element, whose std is undefined, has gain 1; a gradient without spread has at
most 10 sqrt(elements); momentum 0 keeps no buffer; mathematics in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, beta, hyper


@dataclass(frozen=True)
class BoostSettings(Settings):
    """What SGD-Boost takes."""

    default_lr: ClassVar[float | None] = 1e-2
    momentum: float = beta(0.9, "decay of the momentum; 0 keeps none", flags=("beta1", "adam_beta1"))
    eps: float = hyper(1e-8, "added to the standard deviation of the first gradient", at_least=0.0)
    # The released class decays by 0.01 unless told otherwise; its pretraining runs do not decay.
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied before the step", at_least=0.0, released=1e-2)


LARGEST_GAIN = 10.0
"""The gain's bound in units of sqrt(elements), which is the gain of a gradient without a mean."""


@dataclass(frozen=True)
class BoostedStep(UpdateRule):
    """SGD with momentum, times the gain of the first gradient (arXiv 2412.11768, algorithm 1)."""

    decay: ClassVar[Decay] = "before"
    h: BoostSettings

    @property
    def accumulator(self) -> str | None:  # type: ignore[override]
        return "momentum_buffer" if self.h.momentum else None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"gain": StateSpec((), "statistic")}
        return {**specs, "momentum_buffer": StateSpec(tuple(shape), "moment")} if self.h.momentum else specs

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        norm = torch.linalg.vector_norm(grad)
        if norm == 0:
            return False
        if grad.numel() == 1:
            state["gain"].fill_(1.0)
            return True
        gain = norm / (grad.std() + self.h.eps)
        state["gain"].copy_(gain.clamp(max=LARGEST_GAIN * grad.numel() ** 0.5))
        return True

    def initialised(self, state: State) -> bool:
        return bool(state["gain"] != 0)

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        if not self.h.momentum:
            assert grad is not None
            return grad * state["gain"]
        buffer = state["momentum_buffer"]
        if grad is not None:
            buffer = buffer.copy_(grad) if first else buffer.lerp_(grad, 1.0 - self.h.momentum)
        return buffer * state["gain"]

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        buffer = state["momentum_buffer"]
        if opening:
            buffer.mul_(self.h.momentum * share)
        buffer.add_(grad, alpha=1.0 if first else 1.0 - self.h.momentum)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1


class SGDBoost(EngineOptimizer[BoostSettings]):
    """SGD with momentum whose learning rate each parameter scales by the signal-to-noise ratio of its first gradient.

    momentum 0 keeps no buffer. See `EngineOptimizer` for the engine's keyword arguments.
    """

    def rule_for(self, h: BoostSettings, param: Tensor) -> UpdateRule:
        return BoostedStep(h)

    @torch.no_grad()
    def warmup_step(self) -> None:
        """Take the gains from the gradients at hand, without an update; later calls change nothing."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.managed[param].refresh_if_due(param.grad)


register(
    Method(
        "sgd_boost",
        "SGD-Boost / SGD-SaI: momentum SGD, scaled for each tensor by the first gradient's signal-to-noise ratio",
        SGDBoost,
        aliases=("sgd_sai", "sgdboost"),
    )
)
