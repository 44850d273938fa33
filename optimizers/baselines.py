"""Baselines to compare with: Adam, AdamW, SGD and Muon of torch, Adafactor of transformers, 8-bit Adam, and Lion.

`adam` and `adamw` are torch's fused classes for float32 weights in ordinary execution. torch keeps their state in the
weights' dtype, and in bfloat16 with beta2 0.999 a second moment can only grow (0.999 v rounds back to v); for bfloat16
weights, or any engine option, they are therefore the same mathematics on the engine, with float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .engine.combined import CombinedOptimizer
from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, hyper, register, with_betas
from .engine.roles import describe
from .engine.routing import Route, body_matrix, everything, param_groups
from .engine.rule import Scalars, State, StateSpec, UpdateRule
from .engine.sharding import is_sharded
from .primitives.steps import AdamStep, SignedLionStep


class Lion(EngineOptimizer):
    """Lion (Chen et al., arXiv 2302.06675) with decoupled decay after the step."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay), options)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        return SignedLionStep(*group["betas"])


class EngineAdamW(EngineOptimizer):
    """torch.optim.AdamW's mathematics with the engine's storage formats and execution modes."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), options)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        beta1, beta2 = group["betas"]
        return AdamStep(beta1, beta2, group["eps"], eps_inside=True, decays_first=True)


@dataclass(frozen=True)
class MomentumStep(UpdateRule):
    """SGD with heavy-ball momentum, as torch.optim.SGD: buffer = momentum buffer + G, W <- W - lr buffer."""

    momentum: float = 0.9

    @property
    def accumulator(self) -> str | None:  # type: ignore[override]
        return "momentum_buffer" if self.momentum else None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"momentum_buffer": StateSpec(tuple(shape), "moment")} if self.momentum else {}

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        if grad is None:
            return state["momentum_buffer"]
        return state["momentum_buffer"].mul_(self.momentum).add_(grad) if self.momentum else grad

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        if opening:
            state["momentum_buffer"].mul_(self.momentum * share)
        state["momentum_buffer"].add_(grad)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1


class EngineSGD(EngineOptimizer):
    """torch.optim.SGD's mathematics with the engine's formats and execution modes; weight decay is decoupled."""

    def __init__(
        self, params: Iterable, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay), options)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        return MomentumStep(group["momentum"])


@dataclass(frozen=True)
class AdamSettings:
    """What Adam and its relatives take."""

    beta1: float = hyper(0.9, "decay of the momentum", flags=("adam_beta1",))
    beta2: float = hyper(0.999, "decay of the second moment")
    eps: float = hyper(1e-8, "added to the root of the bias-corrected second moment")
    weight_decay: float = hyper(0.0, "decoupled weight decay")


@dataclass(frozen=True)
class SGDSettings:
    """What SGD takes."""

    momentum: float = hyper(0.9, "heavy-ball momentum", flags=("beta1", "adam_beta1"))
    weight_decay: float = hyper(0.0, "weight decay, part of the gradient")


@dataclass(frozen=True)
class MuonSettings:
    """What Muon takes; parameters that are not matrices of the body get AdamW at --adam_lr_ratio times lr."""

    momentum: float = hyper(0.95, "Nesterov momentum", flags=("beta1", "adam_beta1"))
    weight_decay: float = hyper(0.0, "decoupled weight decay")
    adam_lr_ratio: float = hyper(0.1, "learning rate of AdamW (embedding, head, norms) / Muon's")


@dataclass(frozen=True)
class PlainAdafactorSettings:
    """What Adafactor takes."""

    beta1: float = hyper(0.0, "decay of the average of updates; 0 keeps none", flags=("adam_beta1",))
    weight_decay: float = hyper(0.0, "decoupled weight decay")


@dataclass(frozen=True)
class PlainLionSettings:
    """What Lion takes."""

    beta1: float = hyper(0.9, "weight of the momentum in the step", flags=("adam_beta1",))
    beta2: float = hyper(0.99, "decay of the momentum")
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied after the step")


def _routes(model: nn.Module) -> list[dict[str, Any]]:
    return param_groups(model, [Route("all parameters", everything)])


def _plain(model: nn.Module, options: dict[str, Any]) -> bool:
    """Whether torch's own class serves: float32 weights, no engine option."""
    defaults = {"state_dtype": "float32", "execution": "eager", "per_layer": False}
    ordinary = all(options.get(k, v) == v for k, v in defaults.items())
    return ordinary and all(p.tensor.dtype == torch.float32 for p in describe(model))


def _on_meta(model: nn.Module) -> bool:
    """Whether there are shapes only: the engine, whose state exists at once, then tells the state's size."""
    return any(p.is_meta for p in model.parameters())


def _refuse_coupled_decay(name: str, settings: dict[str, Any]) -> None:
    if settings["weight_decay"]:
        raise ValueError(
            f"weight_decay: {name}'s decay, which is part of the gradient, exists with float32 weights and torch's own "
            "class only; use adamw or sgd_boost, or leave it out"
        )


def _adamw(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    if _plain(model, options) and not _on_meta(model):
        return torch.optim.AdamW(_routes(model), lr=lr, fused=True, **with_betas(settings))
    return EngineAdamW(_routes(model), lr=lr, **with_betas(settings), **options)


def _adam(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    if not _plain(model, options):
        _refuse_coupled_decay("adam", settings)
    elif not _on_meta(model):
        return torch.optim.Adam(_routes(model), lr=lr, fused=True, **with_betas(settings))
    return EngineAdamW(_routes(model), lr=lr, **with_betas(settings), **options)


def _sgd(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    if not _plain(model, options):
        _refuse_coupled_decay("sgd", settings)
    elif not _on_meta(model):
        # torch's fused SGD has no rule for DTensors.
        sharded = any(is_sharded(p) for p in model.parameters())
        return torch.optim.SGD(_routes(model), lr=lr, fused=not sharded, **settings)
    return EngineSGD(_routes(model), lr=lr, **settings, **options)


def _lion(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    return Lion(_routes(model), lr=lr, **with_betas(settings), **options)


def _muon(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    """Muon on the matrices of attention and MLP, AdamW on the rest, as its authors advise."""
    parameters = describe(model)
    matrices = [(p.name, p.tensor) for p in parameters if body_matrix(p)]
    rest = [(p.name, p.tensor) for p in parameters if not body_matrix(p)]
    if not matrices:
        raise ValueError("muon: the model has no attention or MLP matrices")
    decay = settings["weight_decay"]
    muon = torch.optim.Muon(
        matrices, lr=lr, momentum=settings["momentum"], weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    others = EngineAdamW(rest, lr=lr * settings["adam_lr_ratio"], weight_decay=decay) if rest else None
    return CombinedOptimizer([muon, others] if others else [muon])


def _refuse_shards(model: nn.Module, name: str) -> None:
    if any(is_sharded(p) for p in model.parameters()):
        raise ValueError(
            f"{name}: the library's class mixes its own tensors with shards, which torch refuses; use replicas "
            "(--parallel ddp), or adamw with --state_dtype int8, or galore_adafactor"
        )


def _adafactor(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from transformers.optimization import Adafactor
    except ImportError as error:
        raise ValueError("adafactor needs the package transformers: pip install transformers") from error
    _refuse_shards(model, "adafactor")
    fixed = dict(scale_parameter=False, relative_step=False, warmup_init=False)
    beta1 = settings["beta1"] or None
    return Adafactor(_routes(model), lr=lr, beta1=beta1, weight_decay=settings["weight_decay"], **fixed)


def _adam8bit(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("adam8bit needs the package bitsandbytes: pip install bitsandbytes") from error
    _refuse_shards(model, "adam8bit")
    groups = [{"params": [p.tensor for p in describe(model)]}]
    return AdamW8bit(groups, lr=lr, **with_betas(settings))


register(Method("adam", "Adam (torch, fused)", AdamSettings, _adam))
register(Method("adamw", "AdamW (torch, fused)", AdamSettings, _adamw))
register(Method("sgd", "SGD with momentum (torch)", SGDSettings, _sgd))
register(
    Method("muon", "Muon (torch) on attention and MLP matrices, AdamW elsewhere", MuonSettings, _muon, engine=False)
)
register(Method("adafactor", "Adafactor (transformers)", PlainAdafactorSettings, _adafactor, engine=False))
register(
    Method("adam8bit", "8-bit AdamW (bitsandbytes)", AdamSettings, _adam8bit, engine=False, aliases=("adamw8bit",))
)
register(Method("lion", "Lion", PlainLionSettings, _lion))
