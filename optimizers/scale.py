"""SCALE: normalised gradients, momentum for the last layer alone (arXiv 2506.16659).

    u = g / max(rms of g along an axis, 1e-8)      W <- W (1 - lr wd) - lr u

g is the gradient; for the head an average of gradients. The axis is a row of torch's (out, in) layout, which the paper
calls a column; for the embedding it is a channel over the vocabulary. Vectors get AdamW at rate lr * adam_lr / (lr at
construction), decay first, eps before the bias correction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.roles import NamedParameter
from .engine.routing import Route, body_matrix, everything
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, beta, hyper
from .primitives import moments
from .primitives.steps import AdamStep

SMALLEST = 1e-8


@dataclass(frozen=True)
class ScaleSettings(Settings):
    """What SCALE takes."""

    default_lr: ClassVar[float | None] = 1e-4
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied before the step", at_least=0.0)
    momentum: float = beta(0.9, "decay of the head's average of gradients", flags=("beta1", "adam_beta1"))
    adam_lr: float | None = hyper(None, "learning rate of AdamW on vectors (default: lr)", above=0.0)
    adamw_beta1: float = beta(0.9, "decay of AdamW's momentum", key="adamw_betas")
    adamw_beta2: float = beta(0.999, "decay of AdamW's second moment", key="adamw_betas")
    adamw_eps: float = hyper(1e-8, "added to the root of AdamW's second moment", at_least=0.0)
    param_type: str | None = hyper(
        None, "what a group holds", choices=("main_param", "secondary_param", "oned_param"), flag=False
    )
    col_dim: int = hyper(1, "axis of the root mean square: 1 a row, 0 a column", at_least=0, at_most=1, flag=False)


@dataclass(frozen=True)
class NormalizedStep(UpdateRule):
    """A gradient, or for a secondary parameter an average of gradients, with root mean square 1 along an axis."""

    decay: ClassVar[Decay] = "before"
    h: ScaleSettings

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"exp_avg": StateSpec(tuple(shape), "moment")} if self.h.param_type == "secondary_param" else {}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        g = moments.first_moment(state, grad, self.h.momentum)  # the gradient itself where none is kept
        return g / g.square().mean(self.h.col_dim, keepdim=True).sqrt().clamp_min(SMALLEST)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1 if self.h.col_dim else None


@dataclass(frozen=True)
class RatedAdamStep(AdamStep):
    """AdamW at `rate` times the learning rate of its group."""

    rate: float = 1.0

    @property
    def lr_factor(self) -> float:
        return self.rate

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        return super().direction(grad, state, s, first) * self.rate


class SCALE(EngineOptimizer[ScaleSettings]):
    """SCALE on groups whose `param_type` is main_param (no state), secondary_param (momentum) or oned_param (AdamW).

    Without the key, matrices are main_param and all else oned_param. `col_dim` 0 normalises columns. wd: the released
    name of weight_decay.
    """

    def __init__(self, params: Iterable, *values: Any, wd: float | None = None, **keywords: Any) -> None:
        super().__init__(params, *values, **(keywords if wd is None else {**keywords, "weight_decay": wd}))

    def _rate(self, adam_lr: float | None) -> float:
        return 1.0 if adam_lr is None or not self.defaults["lr"] else adam_lr / self.defaults["lr"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if param_group.get("param_type") == "oned_param":
            decay = param_group.get("weight_decay", self.defaults["weight_decay"])
            adam_lr = param_group.get("adam_lr", self.defaults["adam_lr"])
            param_group["weight_decay"] = decay * self._rate(adam_lr)  # at AdamW's rate, as its step
        super().add_param_group(param_group)

    def rule_for(self, h: ScaleSettings, param: Tensor) -> UpdateRule:
        kind = h.param_type or ("main_param" if param.ndim == 2 else "oned_param")
        if kind == "oned_param":
            rate = self._rate(h.adam_lr)
            return RatedAdamStep(h.adamw_beta1, h.adamw_beta2, h.adamw_eps, decays_first=True, rate=rate)
        return NormalizedStep(h)


def _embedding(parameter: NamedParameter) -> bool:
    return parameter.role == "embedding"


def _matrix(parameter: NamedParameter) -> bool:
    return parameter.tensor.ndim >= 2


_ROUTES = (
    Route("attention and MLP linears", body_matrix, {"param_type": "main_param"}),
    Route("embedding", _embedding, {"param_type": "main_param", "col_dim": 0}),
    Route("other matrices", _matrix, {"param_type": "secondary_param"}),
    Route("vectors", everything, {"param_type": "oned_param"}),
)
register(Method("scale", "SCALE: normalised gradients, with momentum for the head alone", SCALE, _ROUTES))
