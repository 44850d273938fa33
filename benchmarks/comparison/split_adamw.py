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
from optimizers.primitives.steps import AdamSettings


@dataclass(frozen=True)
class SplitSettings(AdamSettings):
    """What the probe takes beside lr."""

    body_scale: float = hyper(0.25, "learning rate of the matrices in attention and MLP / that of all else", above=0.0)


def _inside(parameter: NamedParameter) -> bool:
    return parameter.block


def _build(model: nn.Module, lr: float, h: SplitSettings, options: dict[str, Any]) -> EngineAdamW:
    routes = [
        Route("matrices of attention and MLP", _inside, {"lr": lr * h.body_scale}),
        Route("embedding, head and norms", everything),
    ]
    return EngineAdamW(param_groups(model, routes), lr, (h.beta1, h.beta2), h.eps, h.weight_decay, **options)


register(Method("split_adamw", "AdamW with a scaled learning rate for the body", settings=SplitSettings, build=_build))
