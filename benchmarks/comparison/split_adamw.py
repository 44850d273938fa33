"""AdamW with a learning rate of its own for the matrices inside attention and MLP: a probe, not a method.

    --optimizer_file benchmarks/comparison/split_adamw.py --optimizer split_adamw --body_scale 0.25

`--lr` is that of embedding, head and norms; the matrices of the body get `--body_scale` times it. GaLore's
scale does the same to its matrices, so this shows how much of a difference to AdamW comes from that alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from optimizers import Method, hyper, register
from optimizers.baselines import EngineAdamW
from optimizers.engine.roles import NamedParameter
from optimizers.engine.routing import Route, everything, param_groups


@dataclass(frozen=True)
class SplitSettings:
    """What the probe takes beside lr."""

    beta1: float = hyper(0.9, "decay of the momentum")
    beta2: float = hyper(0.999, "decay of the second moment")
    eps: float = hyper(1e-8, "added to the root of the bias-corrected second moment")
    body_scale: float = hyper(0.25, "learning rate of the matrices in attention and MLP / that of all else")
    weight_decay: float = hyper(0.0, "decoupled weight decay")


def _inside(parameter: NamedParameter) -> bool:
    return parameter.block


def _build(model: nn.Module, lr: float, settings: dict[str, Any], options: dict[str, Any]) -> EngineAdamW:
    routes = [
        Route("matrices of attention and MLP", _inside, {"lr": lr * settings["body_scale"]}),
        Route("embedding, head and norms", everything),
    ]
    return EngineAdamW(
        param_groups(model, routes),
        lr=lr,
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        **options,
    )


register(Method("split_adamw", "AdamW with a scaled learning rate for the body", SplitSettings, _build))
