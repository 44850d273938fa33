"""GaLore and Online Subspace Descent as optimizers: a class and a name for each weight optimizer inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything
from .engine.rule import UpdateRule
from .engine.settings import hyper
from .galore import ProjectedStep, ProjectionSettings, TwoSidedStep, side_of
from .online_subspace import BASIS_OPTIMIZERS, OnlineSubspaceStep
from .primitives.steps import (
    AdafactorSettings,
    AdafactorStep,
    AdamSettings,
    AdamStep,
    HuggingFaceAdamSettings,
    LionSettings,
    LionStep,
    SignedLionStep,
    WeightStep,
)

P = TypeVar("P", bound=ProjectionSettings)


class ProjectedOptimizer(EngineOptimizer[P]):
    """Base of the GaLore classes: matrices of groups with a `rank` are projected, everything else is not.

    Group keys: rank, update_proj_gap (200), scale (0.25), proj_type ("std"), basis_method ("svd"), rotate_moments.
    """

    own_rules = (ProjectedStep, TwoSidedStep, OnlineSubspaceStep)
    chosen_by = "matrices of groups with a rank"

    def inner_rule(self, h: P, projected: bool) -> WeightStep:
        """The weight optimizer of a group."""
        raise NotImplementedError

    def rule_for(self, h: P, param: Tensor) -> UpdateRule:
        projected = h.rank is not None and param.ndim == 2
        inner = self.inner_rule(h, projected)
        if not projected:
            return inner
        narrow = self.takes_narrow_products(param)
        if h.proj_type in BASIS_OPTIMIZERS:
            return OnlineSubspaceStep(h, inner, side_of("std", param.shape), narrow)
        if h.proj_type == "full":
            return TwoSidedStep(h, inner, "left", narrow)
        return ProjectedStep(h, inner, side_of(h.proj_type, param.shape), narrow)


@dataclass(frozen=True)
class GaLoreAdamWSettings(ProjectionSettings, HuggingFaceAdamSettings):
    """What GaLore-AdamW takes."""


class GaLoreAdamW(ProjectedOptimizer[GaLoreAdamWSettings]):
    """GaLore with AdamW as released: eps beside sqrt(v), decoupled decay after the step with the plain lr."""

    def inner_rule(self, h: GaLoreAdamWSettings, projected: bool) -> WeightStep:
        return AdamStep(h.beta1, h.beta2, h.eps, h.correct_bias)


@dataclass(frozen=True)
class GaLoreAdamW8bitSettings(ProjectionSettings, AdamSettings):
    """What GaLore-AdamW with 8-bit moments takes."""

    # The released class decays by 0.01, as bitsandbytes' classes do; the published runs do not.
    weight_decay: float = hyper(0.0, "decoupled weight decay", at_least=0.0, released=1e-2)


class GaLoreAdamW8bit(ProjectedOptimizer[GaLoreAdamW8bitSettings]):
    """GaLore with 8-bit AdamW: bitsandbytes' formula (eps after the bias correction) on 8-bit moments."""

    presets: ClassVar[Mapping[str, Any]] = {"state_dtype": "int8"}

    def inner_rule(self, h: GaLoreAdamW8bitSettings, projected: bool) -> WeightStep:
        # bitsandbytes' own AdamW8bit, which serves unprojected parameters, decays before the step (0.50, CPU).
        return AdamStep(h.beta1, h.beta2, h.eps, eps_inside=True, decays_first=not projected)


@dataclass(frozen=True)
class GaLoreAdafactorSettings(ProjectionSettings, AdafactorSettings):
    """What GaLore-Adafactor takes."""

    def check(self) -> None:
        super().check()
        if self.rotate_moments:
            raise ValueError("rotate_moments: Adafactor's means of rows and columns cannot be carried into a new basis")


class GaLoreAdafactor(ProjectedOptimizer[GaLoreAdafactorSettings]):
    """GaLore with Adafactor; scale_parameter, relative_step and warmup_init are accepted as False."""

    def inner_rule(self, h: GaLoreAdafactorSettings, projected: bool) -> WeightStep:
        return AdafactorStep(h.eps[0], h.clip_threshold, h.decay_rate, h.beta1 or None)


@dataclass(frozen=True)
class GaLoreLionSettings(ProjectionSettings, LionSettings):
    """What GaLore-Lion takes."""


class GaLoreLion(ProjectedOptimizer[GaLoreLionSettings]):
    """GaLore with Lion: the sign is taken after the lift, so scale only matters through it."""

    def inner_rule(self, h: GaLoreLionSettings, projected: bool) -> WeightStep:
        return (LionStep if projected else SignedLionStep)(h.beta1, h.beta2)


_ROUTES = (Route(BODY_MATRICES, body_matrix), Route("rest", everything, {"rank": None}))


register(Method("galore_adamw", "GaLore and Online Subspace Descent with AdamW", GaLoreAdamW, _ROUTES))
register(Method("galore_adafactor", "GaLore and Online Subspace Descent with Adafactor", GaLoreAdafactor, _ROUTES))
register(Method("galore_lion", "GaLore and Online Subspace Descent with Lion", GaLoreLion, _ROUTES))
register(Method("galore_adamw8bit", "GaLore and Online Subspace Descent with 8-bit AdamW", GaLoreAdamW8bit, _ROUTES))
register(
    Method(
        "galore_adamw8bit_per_layer",
        "GaLore with 8-bit AdamW, updated layer by layer inside the backward pass",
        GaLoreAdamW8bit,
        _ROUTES,
        presets={"per_layer": True},
    )
)
