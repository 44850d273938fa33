"""From a problem as data (class name, keyword arguments, parameter groups) to one oracle per parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracles import apollo, fira, orthogonal, scale, soap, subspace_momentum
from tests.oracles.adam_mini import adam_mini
from tests.oracles.galore import GaLore
from tests.oracles.ldadam import LDAdam
from tests.oracles.moments import Adafactor, Adam, Adam8bit, Lion
from tests.oracles.online_subspace import OnlineSubspace
from tests.oracles.parameter import ParameterOracle, PlainAdafactor, PlainAdam, PlainAdam8bit, PlainLion
from tests.oracles.sgd_boost import SGDBoost
from tests.oracles.subset_norm import SubsetNorm, subset_norm_general

DEFAULTS: dict[str, dict[str, Any]] = {
    "AdamWSN": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "correct_bias": True},
    "AdamWSNG": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "correct_bias": True,
        "subset_size": -1,
        "sn": True,
    },
    "AdamMini": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "SGDBoost": {"lr": 1e-2, "momentum": 0.9, "eps": 1e-8, "weight_decay": 1e-2},
    "LDAdamW": {
        "lr": 1e-3,
        "betas": (0.908, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "rank": 16,
        "rho": 0.908,
        "proj_method": "power_iteration",
        "error_feedback": True,
    },
    "GaLoreAdamW": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "correct_bias": True,
    },
    "GaLoreAdamW8bit": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2},
    "GaLoreAdafactor": {
        "lr": 1e-3,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.0,
    },
    "GaLoreLion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0},
}


OWN = {
    "APOLLOAdamW": apollo.oracle,
    "APOLLOMini": apollo.oracle,
    "AdamWSNSM": subspace_momentum.oracle,
    "Dion2": orthogonal.dion2,
    "FiraAdamW": fira.oracle,
    "Muon": orthogonal.muon,
    "SCALE": scale.oracle,
    "SOAP": soap.oracle,
}
"""Classes whose oracles come from one function each, with its own defaults."""


def oracle_for(
    class_name: str, name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype = torch.float64
) -> ParameterOracle:
    """The oracle of parameter `name`; `settings` are the class's keyword arguments under those of its group."""
    if class_name in OWN:
        return OWN[class_name](name, weight, settings, dtype)
    settings = {**DEFAULTS[class_name], **settings}
    common = {"weight_decay": settings["weight_decay"], "dtype": dtype}
    if class_name == "AdamMini":
        return adam_mini(
            name,
            weight,
            head_dim=settings.get("head_dim") or settings["dim"] // settings["n_heads"],
            betas=settings["betas"],
            eps=settings["eps"],
            one_block_value=settings.get("one_block_value", False),
            **common,
        )
    if class_name == "SGDBoost":
        return SGDBoost(weight, momentum=settings["momentum"], eps=settings["eps"], **common)
    if class_name == "LDAdamW":
        return _ldadam(weight, settings, common)
    if class_name in ("AdamWSN", "AdamWSNG"):
        return _subset_norm(class_name, weight, settings, common)
    return _galore(class_name, weight, settings, common)


def _subset_norm(class_name: str, weight: Tensor, settings: dict, common: dict) -> ParameterOracle:
    adam = {key: settings[key] for key in ("betas", "eps", "correct_bias")}
    if class_name == "AdamWSNG":
        return subset_norm_general(weight, subset_size=settings["subset_size"], sn=settings["sn"], **adam, **common)
    if settings.get("sn", False) and weight.dim() == 2:
        return SubsetNorm(weight, **adam, **common)
    return PlainAdam(weight, eps_placement="before", decay_order="after", **adam, **common)


def _ldadam(weight: Tensor, settings: dict, common: dict) -> ParameterOracle:
    if not settings.get("enable_lowrank", False):
        return PlainAdam(
            weight,
            betas=settings["betas"],
            eps=settings["eps"],
            eps_placement="after",
            decay_order="before",
            **common,
        )
    chosen = ("rank", "rho", "betas", "eps", "proj_method", "error_feedback")
    return LDAdam(weight, **{key: settings[key] for key in chosen}, **common)


def _galore(class_name: str, weight: Tensor, settings: dict, common: dict) -> ParameterOracle:
    if "rank" not in settings:
        return _unprojected(class_name, weight, settings, common)
    projection = {key: settings[key] for key in ("rank", "update_proj_gap", "scale", "proj_type")}
    inner = {
        "GaLoreAdamW": lambda: Adam(settings["betas"], settings["eps"], "before", settings["correct_bias"]),
        "GaLoreAdamW8bit": lambda: Adam8bit(settings["betas"], settings["eps"]),
        "GaLoreAdafactor": lambda: Adafactor(
            settings["eps"][0], settings["clip_threshold"], settings["decay_rate"], settings["beta1"]
        ),
        "GaLoreLion": lambda: Lion(settings["betas"]),
    }[class_name]()
    if settings["proj_type"].startswith("continuous"):
        return OnlineSubspace(
            weight,
            inner=inner,
            initial_lr=settings["lr"],
            orthogonality=settings.get("proj_orthogonality", 0.0),
            **projection,
            **common,
        )
    return GaLore(weight, inner=inner, **projection, **common)


def _unprojected(class_name: str, weight: Tensor, settings: dict, common: dict) -> ParameterOracle:
    if class_name == "GaLoreAdamW":
        return PlainAdam(
            weight,
            betas=settings["betas"],
            eps=settings["eps"],
            eps_placement="before",
            decay_order="after",
            correct_bias=settings["correct_bias"],
            **common,
        )
    if class_name == "GaLoreAdamW8bit":
        return PlainAdam8bit(weight, betas=settings["betas"], eps=settings["eps"], **common)
    if class_name in ("GaLoreLion", "Lion"):
        return PlainLion(weight, betas=settings["betas"], **common)
    return PlainAdafactor(
        weight,
        eps=settings["eps"][0],
        clip_threshold=settings["clip_threshold"],
        decay_rate=settings["decay_rate"],
        beta1=settings["beta1"],
        **common,
    )
