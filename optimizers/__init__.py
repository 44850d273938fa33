"""Memory-efficient optimizers: each method a small update rule, everything else supplied by one engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adam_mini import AdamMini
from .apollo import APOLLOAdamW, APOLLOMini
from .baselines import Lion
from .dion2 import Dion2
from .engine import registry
from .engine.optimizer import EngineOptimizer
from .engine.options import EngineOptions
from .engine.parts import RoutingOptions
from .engine.registry import Method, available, register
from .engine.session import Session, replicate, session, synchronize
from .engine.settings import Settings, beta, hyper
from .fira import FiraAdamW
from .galore_methods import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit, GaLoreLion
from .ldadam import LDAdamW
from .muon import Muon
from .scale import SCALE
from .sgd_boost import SGDBoost
from .soap import SOAP
from .subset_norm import AdamWSN, AdamWSNG
from .subspace_momentum import AdamWSNSM


def build_optimizer(name: str, model: nn.Module, lr: float, **arguments: Any) -> torch.optim.Optimizer:
    """The optimizer of this name for a model, with its parameters routed to the method's rules.

    arguments: the method's hyperparameters, fields of `RoutingOptions` (target_modules or targets, roles, rates and
    decay by role) and, for methods on the engine, fields of `EngineOptions`; those not given keep their defaults.
    Works on meta tensors, where the allocated state predicts memory.
    Raises ValueError for an unknown name (with near names), an argument that the method does not take, or a bad value.
    """
    method = registry.get(name)
    return method.make(model, lr, *method.sort(arguments), RoutingOptions.from_arguments(arguments))


registry.load_all()

__all__ = [
    "APOLLOAdamW",
    "APOLLOMini",
    "AdamMini",
    "AdamWSN",
    "AdamWSNG",
    "AdamWSNSM",
    "Dion2",
    "EngineOptimizer",
    "EngineOptions",
    "FiraAdamW",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "GaLoreLion",
    "LDAdamW",
    "Lion",
    "Method",
    "Muon",
    "SCALE",
    "RoutingOptions",
    "SGDBoost",
    "SOAP",
    "Session",
    "Settings",
    "available",
    "beta",
    "build_optimizer",
    "hyper",
    "register",
    "replicate",
    "session",
    "synchronize",
]
