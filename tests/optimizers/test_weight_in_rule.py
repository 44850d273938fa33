"""A rule that reads the weight: cautious weight decay, which shrinks only where the step does, against its formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from optimizers import EngineOptimizer, Settings, beta, hyper
from optimizers.engine.rule import Decay, Scalars, State, StateSpec, UpdateRule


@dataclass(frozen=True)
class CautiousSettings(Settings):
    momentum: float = beta(0.9, "decay of the momentum")
    weight_decay: float = hyper(0.0, "cautious weight decay", at_least=0.0)


@dataclass(frozen=True)
class CautiousStep(UpdateRule):
    """M <- a M + (1 - a) G; the direction is M + decay [M W > 0] W."""

    decay: ClassVar[Decay] = "inside"
    sees_weight: ClassVar[bool] = True
    h: CautiousSettings

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"momentum_buffer": StateSpec(tuple(shape), "moment")}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        m, weight = state["momentum_buffer"].lerp_(grad, 1.0 - self.h.momentum), state["weight"]
        return m + s["weight_decay"] * weight * (m * weight > 0)

    def row_block(self, shape: torch.Size) -> int | None:
        return 1


class CautiousSGD(EngineOptimizer[CautiousSettings]):
    def rule_for(self, h: CautiousSettings, param: Tensor) -> UpdateRule:
        return CautiousStep(h)


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(5)]


def by_formula(start: Tensor) -> Tensor:
    w, m = start.double(), torch.zeros(6, 4, dtype=torch.float64)
    for number, g in enumerate(gradients()):
        decay = 0.5 if number < 3 else 0.25
        m = 0.8 * m + 0.2 * g
        w = w - 0.1 * (m + decay * w * (m * w > 0))
    return w


@pytest.mark.parametrize("options", [{}, {"per_layer": True}, {"execution": "compiled"}])
def test_it_is_the_formula_in_every_way_of_running(options: dict[str, Any]) -> None:
    """Also when the decay changes during training."""
    weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    start = weight.detach().clone()
    optimizer = CautiousSGD([weight], lr=0.1, momentum=0.8, weight_decay=0.5, **options)
    for number, g in enumerate(gradients()):
        optimizer.param_groups[0]["weight_decay"] = 0.5 if number < 3 else 0.25
        if options.get("per_layer"):
            optimizer.begin_update()
        (weight * g.float()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weight.detach().double(), by_formula(start), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weight.detach(), start)
