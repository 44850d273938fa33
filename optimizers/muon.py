"""Muon: momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Moonlight, arXiv 2502.16982).

    B <- mu B + (1 - mu) G      U = polar((1 - mu) G + mu B), without Nesterov polar(B)      W <- W (1 - lr wd) - lr s U

`adjust_lr_fn` is the factor s of a matrix of m rows and n columns: `original` sqrt(max(1, m / n)) (Keller Jordan),
`match_rms_adamw` 0.2 sqrt(max(m, n)) (Moonlight), at which AdamW's learning rate and decay serve. Moonlight's buffer,
a sum, is B / (1 - mu), of which the polar factor is the same. The factor comes from Newton-Schulz iterations or Polar
Express. `normuon` divides the rows of U (columns, where they are more) by a running root mean square and restores its
norm (NorMuon, arXiv 2510.05491; without the cautious decay). Embedding, head and vectors get AdamW, decay first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import Settings, beta, hyper
from .primitives import moments
from .primitives.blocks import kept_dim_shape
from .primitives.polar import DTYPES, NEWTON_SCHULZ, POLAR_EXPRESS, POLAR_EXPRESS_MARGIN, polar
from .primitives.steps import AdamStep

NEWTON_SCHULZ_EPS, POLAR_EXPRESS_EPS, NORMUON_FLOOR = 1e-7, 1e-6, 1e-10
NORMUON_BETA2 = 0.95


@dataclass(frozen=True)
class MuonSettings(Settings):
    """What Muon takes; parameters that are not matrices of the body get AdamW at --adam_lr_ratio times lr."""

    # torch.optim.Muon and Moonlight's class decay by 0.1; the published C4 runs, and every method by name, by nothing.
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied before the step", at_least=0.0, released=0.1)
    momentum: float = beta(0.95, "decay of the momentum", flags=("beta1", "adam_beta1"))
    nesterov: bool = hyper(True, "orthogonalise the momentum a step ahead")
    ns_steps: int = hyper(5, "Newton-Schulz iterations", at_least=1)
    # None is the first choice in torch, whose argument this is.
    adjust_lr_fn: str | None = hyper(
        "match_rms_adamw", "factor of the step by shape", choices=("original", "match_rms_adamw"), released=None
    )
    coefficients: str = hyper(
        "newton_schulz", "polynomials of the orthogonalisation", choices=("newton_schulz", "polar_express")
    )
    normuon: bool = hyper(False, "divide rows of the step by their running root mean square (NorMuon)")
    normuon_beta2: float | None = beta(None, f"decay of NorMuon's mean squares (default {NORMUON_BETA2})")
    adam_lr_ratio: float = hyper(1.0, "learning rate of AdamW (embedding, head, vectors) / Muon's", above=0.0)
    adamw_beta1: float = beta(0.9, "decay of AdamW's momentum", key="adamw_betas")
    adamw_beta2: float = beta(0.95, "decay of AdamW's second moment", key="adamw_betas")
    adamw_eps: float = hyper(1e-8, "added to the root of AdamW's second moment", at_least=0.0)
    ns_dtype: str = hyper("auto", "type of the orthogonalisation's products (auto: bfloat16 on a GPU)", choices=DTYPES)
    use_muon: bool = hyper(True, "whether matrices of the group get Muon", flag=False)
    betas: tuple[float, ...] | None = hyper(None, "AdamW's betas in a group", at_least=0.0, below=1.0, flag=False)
    eps: float | None = hyper(None, "AdamW's eps in a group", at_least=0.0, flag=False)

    def check(self) -> None:
        if self.coefficients == "polar_express" and self.ns_steps != len(POLAR_EXPRESS):
            raise ValueError(f"ns_steps={self.ns_steps}: Polar Express has {len(POLAR_EXPRESS)} steps; leave it out")
        if self.normuon_beta2 is not None and not self.normuon:
            raise ValueError(f"normuon_beta2={self.normuon_beta2}: it belongs to normuon; add it, or leave this out")


@dataclass(frozen=True)
class MuonStep(UpdateRule):
    """Muon on one matrix. scale: the factor of its shape."""

    decay: ClassVar[Decay] = "before"
    h: MuonSettings
    scale: float

    @property
    def accumulator(self) -> str | None:  # type: ignore[override]
        return None if self.h.nesterov else "momentum_buffer"

    @property
    def lr_factor(self) -> float:
        return self.scale

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"momentum_buffer": StateSpec(tuple(shape), "moment")}
        if self.h.normuon:
            specs["exp_avg_sq"] = StateSpec(kept_dim_shape(tuple(shape)), "second_moment")
        return specs

    def direction(self, grad: Tensor | None, state: State, s: Scalars, first: bool) -> Tensor:
        buffer = state["momentum_buffer"]
        if grad is not None:
            buffer.lerp_(grad, 1.0 - self.h.momentum)
        ahead = torch.lerp(grad, buffer, self.h.momentum) if self.h.nesterov and grad is not None else buffer
        update = self._orthogonal(ahead)
        return (self._even(update, state) if self.h.normuon else update) * self.scale

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        if self.h.coefficients == "polar_express":
            return polar(matrix, POLAR_EXPRESS, POLAR_EXPRESS_EPS, POLAR_EXPRESS_MARGIN, self.h.ns_dtype)
        return polar(matrix, NEWTON_SCHULZ[:1] * self.h.ns_steps, NEWTON_SCHULZ_EPS, 1.0, self.h.ns_dtype)

    def _even(self, update: Tensor, state: State) -> Tensor:
        """NorMuon: lines of the longer side divided by their running root mean square, the norm kept."""
        line = 1 if state["exp_avg_sq"].shape[1] == 1 else 0
        beta2 = NORMUON_BETA2 if self.h.normuon_beta2 is None else self.h.normuon_beta2
        v = moments.second_moment(state, update.square().mean(line, keepdim=True), beta2)
        even = update / v.clamp_min(NORMUON_FLOOR).sqrt()
        norms = torch.linalg.vector_norm(update), torch.linalg.vector_norm(even)
        return even * (norms[0] / norms[1].clamp_min(NORMUON_FLOOR))

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        if opening:
            state["momentum_buffer"].mul_(self.h.momentum * share)
        state["momentum_buffer"].add_(grad, alpha=1.0 - self.h.momentum)


def shape_factor(name: str | None, shape: torch.Size) -> float:
    """The factor of a matrix of this shape in the step."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if name == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


class Muon(EngineOptimizer[MuonSettings]):
    """Muon on the matrices of groups with `use_muon` (the default), AdamW on other groups, at their own lr.

    Groups without `use_muon` may set lr (default: adam_lr_ratio times lr), weight_decay, betas and eps. Raises
    ValueError for a tensor that is no matrix in a group with `use_muon`.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not param_group.get("use_muon", True):
            ratio = param_group.get("adam_lr_ratio", self.defaults["adam_lr_ratio"])
            param_group.setdefault("lr", self.defaults["lr"] * ratio)
        super().add_param_group(param_group)

    def rule_for(self, h: MuonSettings, param: Tensor) -> UpdateRule:
        if not h.use_muon:
            beta1, beta2 = h.betas or (h.adamw_beta1, h.adamw_beta2)
            return AdamStep(beta1, beta2, h.adamw_eps if h.eps is None else h.eps, decays_first=True)
        if param.ndim != 2:
            raise ValueError(f"Muon takes matrices, not {tuple(param.shape)}: use a group with use_muon=False")
        return MuonStep(h, shape_factor(h.adjust_lr_fn, param.shape))


_ROUTES = (Route(BODY_MATRICES, body_matrix), Route("rest", everything, {"use_muon": False}))
register(Method("muon", "Muon on attention and MLP matrices, AdamW elsewhere", Muon, _ROUTES))
