"""The names under which GaLore and Online Subspace Descent are chosen, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .engine.registry import Build, Method, hyper, register, with_betas
from .engine.routing import BODY_MATRICES, Route, body_matrix, everything, param_groups
from .galore import PROJ_TYPES, GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit, GaLoreLion, ProjectedOptimizer


@dataclass(frozen=True)
class ProjectionSettings:
    """What every GaLore method takes."""

    weight_decay: float = hyper(0.0, "decoupled weight decay")
    rank: int = hyper(128, "rank of the projected gradient; at most the smaller side of a matrix")
    update_proj_gap: int = hyper(200, "updates between two refreshes of the basis (T)")
    galore_scale: float = hyper(0.25, "factor on the lifted step", flags=("scale",))
    proj_type: str = hyper("std", "where the basis comes from and multiplies", choices=PROJ_TYPES)
    basis_method: str = hyper("svd", "how a basis is computed", choices=("svd", "randomized"))
    rotate_moments: bool = hyper(False, "carry the moments into a new basis at a refresh")
    proj_orthogonality: float = hyper(0.0, "lambda of the orthogonality penalty of continuous bases (the paper: 0.1)")


@dataclass(frozen=True)
class AdamWSettings(ProjectionSettings):
    """GaLore-AdamW."""

    beta1: float = hyper(0.9, "decay of the momentum", flags=("adam_beta1",))
    beta2: float = hyper(0.999, "decay of the second moment")
    eps: float = hyper(1e-6, "added to the root of the second moment")


@dataclass(frozen=True)
class AdamW8bitSettings(AdamWSettings):
    """GaLore-AdamW with 8-bit moments."""

    eps: float = hyper(1e-8, "added to the root of the bias-corrected second moment")


@dataclass(frozen=True)
class AdafactorSettings(ProjectionSettings):
    """GaLore-Adafactor."""

    beta1: float = hyper(0.0, "decay of the average of updates; 0 keeps none", flags=("adam_beta1",))


@dataclass(frozen=True)
class LionSettings(ProjectionSettings):
    """GaLore-Lion."""

    beta1: float = hyper(0.9, "weight of the momentum in the step", flags=("adam_beta1",))
    beta2: float = hyper(0.99, "decay of the momentum")


def _build(kind: Callable[..., ProjectedOptimizer]) -> Build:
    def build(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> ProjectedOptimizer:
        settings = with_betas(settings) if "beta2" in settings else dict(settings)
        group = {k: settings.pop(k) for k in ("rank", "update_proj_gap", "proj_type", "basis_method", "rotate_moments")}
        group["scale"] = settings.pop("galore_scale")
        group["proj_orthogonality"] = settings.pop("proj_orthogonality")
        blocks = Route(BODY_MATRICES, body_matrix, group)
        groups = param_groups(model, [blocks, Route("rest", everything)])
        return kind(groups, lr=lr, **settings, **options)

    return build


def _register(name: str, what: str, settings: type, kind: type[ProjectedOptimizer], **presets: Any) -> None:
    description = f"GaLore and Online Subspace Descent (--proj_type continuous...) with {what}"
    register(Method(name, description, settings, _build(kind), presets=presets))


_register("galore_adamw", "AdamW", AdamWSettings, GaLoreAdamW)
_register("galore_adafactor", "Adafactor", AdafactorSettings, GaLoreAdafactor)
_register("galore_lion", "Lion", LionSettings, GaLoreLion)
_register("galore_adamw8bit", "8-bit AdamW", AdamW8bitSettings, GaLoreAdamW8bit, state_dtype="int8")
_register(
    "galore_adamw8bit_per_layer",
    "8-bit AdamW, updated layer by layer inside the backward pass",
    AdamW8bitSettings,
    GaLoreAdamW8bit,
    state_dtype="int8",
    per_layer=True,
)
