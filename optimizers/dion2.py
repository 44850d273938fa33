"""Dion2: the orthogonal factor of a part of the momentum's rows or columns (arXiv 2512.16928).

    M <- M + G; of the rows, or the columns where they are fewer, a fraction with the largest sums of |M| is chosen
    W <- W (1 - lr wd)      W[chosen] <- W[chosen] - lr s polar(M[chosen])      M[chosen] <- ef_decay M[chosen]

`adjust_lr` is the factor s of a matrix of m rows and n columns: `spectral_norm` sqrt(m / n), `rms_norm`
0.2 sqrt(max(m, n)), `none` 1. The choice is that of the whole matrix, on any number of processes (the released
`selection_scope` "global"). Embedding, head and vectors get AdamW or Lion at the same lr, decay first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, beta, hyper
from .primitives.polar import DTYPES, POLAR_EXPRESS, POLAR_EXPRESS_MARGIN, Coefficients, polar
from .primitives.steps import AdamStep, SignedLionStep

NEWTON_SCHULZ: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Dion's own polynomials, another at each iteration."""


@dataclass(frozen=True)
class Dion2Settings(Settings):
    """What Dion2 takes."""

    default_lr: ClassVar[float | None] = 0.01
    fraction: float = hyper(0.25, "part of the shorter side that an update moves", above=0.0, at_most=1.0)
    ef_decay: float = beta(0.95, "decay of the momentum that was applied")
    beta1: float = beta(0.9, "decay of the momentum of AdamW or Lion", key="betas", flags=("adam_beta1",))
    beta2: float = beta(0.95, "decay of AdamW's second moment, or of Lion's momentum", key="betas")
    # The released class decays by 0.01; every method by name by nothing.
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied before the step", at_least=0.0, released=0.01)
    eps: float = hyper(1e-8, "added to the norm before the iterations, and AdamW's eps", at_least=0.0, key="epsilon")
    adjust_lr: str | None = hyper(
        "spectral_norm", "factor of the step by shape", choices=("spectral_norm", "rms_norm", "none")
    )
    use_polar_express: bool = hyper(True, "Polar Express; off: Newton-Schulz")
    ns_dtype: str = hyper("auto", "type of the orthogonalisation's products (auto: bfloat16 on a GPU)", choices=DTYPES)
    algorithm: str = hyper("dion2", "what a group gets", choices=("dion2", "adamw", "lion"), flag=False)


@dataclass(frozen=True)
class Dion2Step(UpdateRule):
    """Dion2 on one matrix. scale: the factor of its shape."""

    decay: ClassVar[Decay] = "before"
    accumulator: ClassVar[str | None] = "momentum_buffer"
    h: Dion2Settings
    scale: float

    @property
    def lr_factor(self) -> float:
        return self.scale

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"momentum_buffer": StateSpec(tuple(shape), "moment")}

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        buffer = state["momentum_buffer"]
        if grad is not None:
            buffer.add_(grad)
        by_rows = buffer.shape[0] <= buffer.shape[1]
        lines = buffer if by_rows else buffer.mT
        count = max(1, math.ceil(self.h.fraction * lines.shape[0]))
        chosen = lines.abs().sum(1).topk(count).indices
        part = lines.index_select(0, chosen)
        step = torch.zeros_like(lines).index_copy(0, chosen, self._orthogonal(part) * self.scale)
        left = lines.index_copy(0, chosen, part * self.h.ef_decay)
        buffer.copy_(left if by_rows else left.mT)
        return step if by_rows else step.mT

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        if self.h.use_polar_express:
            return polar(matrix, POLAR_EXPRESS, self.h.eps, POLAR_EXPRESS_MARGIN, self.h.ns_dtype)
        return polar(matrix, NEWTON_SCHULZ, self.h.eps, 1.0, self.h.ns_dtype)

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        if opening:
            state["momentum_buffer"].mul_(share)
        state["momentum_buffer"].add_(grad)


@dataclass(frozen=True)
class _LionStep(SignedLionStep):
    decay: ClassVar[Decay] = "before"


class Dion2(EngineOptimizer[Dion2Settings]):
    """Dion2 on the matrices of groups whose `algorithm` is dion2 (the default); adamw or lion in other groups.

    Raises ValueError for a tensor that is no matrix in a group of dion2.
    """

    def rule_for(self, h: Dion2Settings, param: Tensor) -> UpdateRule:
        if h.algorithm == "lion":
            return _LionStep(h.beta1, h.beta2)
        if h.algorithm == "adamw":
            return AdamStep(h.beta1, h.beta2, h.eps, eps_inside=True, decays_first=True)
        if param.ndim != 2:
            raise ValueError(f"Dion2 takes matrices, not {tuple(param.shape)}: use a group with another algorithm")
        rows, columns = param.shape
        factors = {"spectral_norm": math.sqrt(rows / columns), "rms_norm": 0.2 * math.sqrt(max(rows, columns))}
        return Dion2Step(h, factors.get(h.adjust_lr or "none", 1.0))


_ROUTES = (Route(BODY_MATRICES, body_matrix), Route("rest", everything, {"algorithm": "adamw"}))
register(Method("dion2", "Dion2: a part of the momentum's rows or columns, orthogonalised", Dion2, _ROUTES))
