"""One entry for every method and mode: how to make it over a list of plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import optimizers

Make = Callable[..., Any]

PROJECTIONS = ("std", "reverse_std", "left", "right", "full", "random")
CONTINUOUS = (
    "continuous",
    "continuous_adam8bit",
    "continuous_lion",
    "continuous_adafactor",
    "continuous_sgd",
)
GALORE = ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor", "GaLoreLion")
PROJ_METHODS = ("power_iteration", "svd", "svd_lowrank")


def adam_mini_names(weights: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    """Matrices as MLP weights, vectors as norms."""
    name = {1: "layers.{}.input_layernorm.weight", 2: "layers.{}.mlp.up_proj.weight"}
    return [(name[w.dim()].format(i), w) for i, w in enumerate(weights)]


def _adam_mini(weights: list[nn.Parameter], lr: float = 0.01, **more: Any) -> Any:
    return optimizers.AdamMini(adam_mini_names(weights), lr=lr, dim=4, n_heads=1, **more)


def _grouped(class_name: str, group: dict[str, Any], fixed: dict[str, Any] | None = None) -> Make:
    def make(weights: list[nn.Parameter], lr: float = 0.01, **more: Any) -> Any:
        keys = ("rank", "update_proj_gap", "basis_method", "rotate_moments")
        own = {key: more.pop(key) for key in keys if key in more}
        arguments = {"weight_decay": 0.0, **(fixed or {}), **more}
        return getattr(optimizers, class_name)([{"params": weights, **group, **own}], lr=lr, **arguments)

    return make


def _galore(class_name: str, proj_type: str) -> Make:
    return _grouped(class_name, {"rank": 3, "update_proj_gap": 3, "scale": 0.5, "proj_type": proj_type})


def _ldadam(method: str, feedback: bool) -> Make:
    fixed = {"proj_method": method, "error_feedback": feedback}
    return _grouped("LDAdamW", {"enable_lowrank": True, "rank": 3}, fixed)


def _split(class_name: str, matrices: dict[str, Any], others: dict[str, Any]) -> Make:
    """A class that takes matrices only where its own rule is asked for."""

    def make(weights: list[nn.Parameter], lr: float = 0.01, **more: Any) -> Any:
        kinds = {True: matrices, False: others}
        groups = [{"params": [w for w in weights if (w.dim() == 2) == flat], **kinds[flat]} for flat in (True, False)]
        arguments = {"weight_decay": 0.0, **more}
        return getattr(optimizers, class_name)([g for g in groups if g["params"]], lr=lr, **arguments)

    return make


_LOW = {"rank": 3, "update_proj_gap": 3}
SUBSPACES: dict[str, Make] = {
    "APOLLOAdamW-svd": _grouped("APOLLOAdamW", {**_LOW, "proj": "svd"}),
    "FiraAdamW": _grouped("FiraAdamW", _LOW),
    "AdamWSNSM": _grouped("AdamWSNSM", {**_LOW, "update_proj_gap": 2}),
    "AdamWSNSM-reset": _grouped("AdamWSNSM", {**_LOW, "update_proj_gap": 2, "momentum_at_refresh": "reset"}),
}
OTHERS: dict[str, Make] = {
    "APOLLOAdamW-random": _grouped("APOLLOAdamW", _LOW),
    "APOLLOMini-random": _grouped("APOLLOMini", {"rank": 1, "update_proj_gap": 3, "scale": 4.0}),
    "Dion2": _split("Dion2", {}, {"algorithm": "adamw"}),
    "Muon": _split("Muon", {}, {"use_muon": False}),
    "Muon-normuon": _split("Muon", {"normuon": True, "coefficients": "polar_express"}, {"use_muon": False}),
    "SCALE": _split("SCALE", {"param_type": "secondary_param"}, {"param_type": "oned_param"}),
    "SCALE-columns": _split("SCALE", {"param_type": "main_param", "col_dim": 0}, {"param_type": "oned_param"}),
    # A basis on the shorter side only: on both, the longer one begins in an arbitrary null space.
    "SOAP": _grouped("SOAP", {}, {"max_precond_dim": 5, "precondition_frequency": 2}),
}
METHODS: dict[str, Make] = {
    "AdamWSN": _grouped("AdamWSN", {"sn": True}),
    "AdamWSN-no_momentum": _grouped("AdamWSN", {"sn": True}, {"betas": (0.0, 0.999)}),
    "AdamWSNG": _grouped("AdamWSNG", {}),
    "AdamMini": _adam_mini,
    "SGDBoost": _grouped("SGDBoost", {}),
    "SGDBoost-no_momentum": _grouped("SGDBoost", {}, {"momentum": 0.0}),
    "Lion": _grouped("Lion", {}),
    **{f"LDAdamW-{m}-{'' if e else 'no_'}feedback": _ldadam(m, e) for m in PROJ_METHODS for e in (True, False)},
    **{f"{kind}-{proj}": _galore(kind, proj) for kind in GALORE for proj in PROJECTIONS + CONTINUOUS},
    "GaLoreAdafactor-std-momentum": _grouped(
        "GaLoreAdafactor", {"rank": 3, "update_proj_gap": 3, "scale": 0.5, "proj_type": "std"}, {"beta1": 0.9}
    ),
    **SUBSPACES,
    **OTHERS,
}

WITH_BASIS = [name for name in METHODS if name.startswith(("GaLore", "LDAdam")) or name in SUBSPACES]
REFRESHING = [name for name in WITH_BASIS if name.endswith(PROJECTIONS) or name in SUBSPACES]
MOVING = [name for name in WITH_BASIS if "continuous" in name or name.startswith("LDAdam")]
