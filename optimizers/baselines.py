"""Baselines to compare with: Adam, AdamW and SGD of torch, Adafactor, 8-bit AdamW, and Lion.

`adam` and `adamw` are torch's fused classes for float32 weights in ordinary execution. torch keeps their state in the
weights' dtype, and in bfloat16 with beta2 0.999 a second moment can only grow (0.999 v rounds back to v); for bfloat16
weights, or any engine option, they are therefore the same mathematics on the engine, with float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .engine.optimizer import EngineOptimizer
from .engine.placement import is_sharded
from .engine.registry import Method, register
from .engine.roles import describe
from .engine.routing import ALL_PARAMETERS, param_groups
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, beta, hyper
from .primitives.steps import AdafactorStep, AdamSettings, AdamStep, LionSettings, SignedLionStep


class Lion(EngineOptimizer[LionSettings]):
    """Lion (Chen et al., arXiv 2302.06675) with decoupled decay after the step."""

    def rule_for(self, h: LionSettings, param: Tensor) -> UpdateRule:
        return SignedLionStep(h.beta1, h.beta2)


class EngineAdamW(EngineOptimizer[AdamSettings]):
    """torch.optim.AdamW's mathematics with the engine's storage formats and execution modes."""

    def rule_for(self, h: AdamSettings, param: Tensor) -> UpdateRule:
        return AdamStep(h.beta1, h.beta2, h.eps, eps_inside=True, decays_first=True)


@dataclass(frozen=True)
class SGDSettings(Settings):
    """What SGD takes."""

    momentum: float = beta(0.9, "heavy-ball momentum; 0 keeps none", flags=("beta1", "adam_beta1"))
    weight_decay: float = hyper(0.0, "weight decay, part of the gradient", at_least=0.0)


@dataclass(frozen=True)
class MomentumStep(UpdateRule):
    """SGD with heavy-ball momentum, as torch.optim.SGD: buffer = momentum buffer + G, W <- W - lr buffer."""

    h: SGDSettings

    @property
    def accumulator(self) -> str | None:  # type: ignore[override]
        return "momentum_buffer" if self.h.momentum else None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"momentum_buffer": StateSpec(tuple(shape), "moment")} if self.h.momentum else {}

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        if grad is None:
            return state["momentum_buffer"]
        return state["momentum_buffer"].mul_(self.h.momentum).add_(grad) if self.h.momentum else grad

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        if opening:
            state["momentum_buffer"].mul_(self.h.momentum * share)
        state["momentum_buffer"].add_(grad)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1


class EngineSGD(EngineOptimizer[SGDSettings]):
    """torch.optim.SGD's mathematics with the engine's formats and execution modes; weight decay is decoupled."""

    def rule_for(self, h: SGDSettings, param: Tensor) -> UpdateRule:
        return MomentumStep(h)


@dataclass(frozen=True)
class AdafactorSettings(Settings):
    """What Adafactor takes."""

    beta1: float = beta(0.0, "decay of the average of updates; 0 keeps none", flags=("adam_beta1",))
    weight_decay: float = hyper(0.0, "decoupled weight decay", at_least=0.0)


class EngineAdafactor(EngineOptimizer[AdafactorSettings]):
    """Adafactor (Shazeer & Stern, arXiv 1804.04235) at a given learning rate, as transformers' without its scaling by
    parameters and relative steps: clipping at 1, decay of the second moment 1 - t^-0.8."""

    def rule_for(self, h: AdafactorSettings, param: Tensor) -> UpdateRule:
        return AdafactorStep(beta1=h.beta1 or None)


class EngineAdamW8bit(EngineAdamW):
    """AdamW with 8-bit moments, in bitsandbytes' format and with its formula."""

    presets: ClassVar[Mapping[str, Any]] = {"state_dtype": "int8"}


def _routes(model: nn.Module) -> list[dict[str, Any]]:
    return param_groups(model, [ALL_PARAMETERS])


def _plain(model: nn.Module, options: dict[str, Any]) -> bool:
    """Whether torch's own class serves: float32 weights, no engine option."""
    defaults = {"state_dtype": "float32", "per_layer": False}
    ordinary = all(options.get(k, v) == v for k, v in defaults.items()) and options.get("execution") != "compiled"
    return ordinary and all(p.tensor.dtype == torch.float32 for p in describe(model))


def _on_meta(model: nn.Module) -> bool:
    """Whether there are shapes only: the engine, whose state exists at once, then tells the state's size."""
    return any(p.is_meta for p in model.parameters())


def _refuse_coupled_decay(name: str, h: AdamSettings | SGDSettings) -> None:
    if h.weight_decay:
        raise ValueError(
            f"weight_decay: {name}'s decay, which is part of the gradient, exists with float32 weights and torch's own "
            "class only; use adamw or sgd_boost, or leave it out"
        )


def _adamw(model: nn.Module, lr: float, h: AdamSettings, options: dict[str, Any]) -> torch.optim.Optimizer:
    if _plain(model, options) and not _on_meta(model):
        return torch.optim.AdamW(_routes(model), lr=lr, fused=True, **h.by_key())
    return EngineAdamW(_routes(model), lr=lr, **h.by_key(), **options)


def _adam(model: nn.Module, lr: float, h: AdamSettings, options: dict[str, Any]) -> torch.optim.Optimizer:
    if not _plain(model, options):
        _refuse_coupled_decay("adam", h)
    elif not _on_meta(model):
        return torch.optim.Adam(_routes(model), lr=lr, fused=True, **h.by_key())
    return EngineAdamW(_routes(model), lr=lr, **h.by_key(), **options)


def _sgd(model: nn.Module, lr: float, h: SGDSettings, options: dict[str, Any]) -> torch.optim.Optimizer:
    if not _plain(model, options):
        _refuse_coupled_decay("sgd", h)
    elif not _on_meta(model):
        # torch's fused SGD has no rule for DTensors.
        sharded = any(is_sharded(p) for p in model.parameters())
        return torch.optim.SGD(_routes(model), lr=lr, fused=not sharded, **h.by_key())
    return EngineSGD(_routes(model), lr=lr, **h.by_key(), **options)


register(Method("adam", "Adam (torch, fused)", settings=AdamSettings, build=_adam))
register(Method("adamw", "AdamW (torch, fused)", settings=AdamSettings, build=_adamw))
register(Method("sgd", "SGD with momentum (torch)", settings=SGDSettings, build=_sgd))
register(Method("adafactor", "Adafactor", EngineAdafactor))
register(Method("adam8bit", "AdamW with 8-bit moments", EngineAdamW8bit, aliases=("adamw8bit",)))
register(Method("lion", "Lion", Lion))
