"""A copy of an optimizer goes on as the original would have, and never touches it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import optimizers
from tests.optimizers.makers import METHODS
from tests.optimizers.models import loss_of, tiny_llama
from tests.optimizers.test_guards import gradients_of, step, weights_of
from tests.optimizers.test_state import assert_equal_states, train

SHAPES = [(7, 5), (5, 7), (6,)]
NAMES = ("AdamWSN", "AdamWSNG", "AdamMini", "SGDBoost", "LDAdamW-power_iteration-feedback", "GaLoreAdamW-random")
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_alone(name: str, way: str) -> None:
    """With a scheduler, which hangs a wrapped `step` onto the object it was made for."""
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights, state_dtype="bfloat16")
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0)
    for update in range(3):
        step(optimizer, weights, gradients_of(update, weights))
    before = [w.detach().clone() for w in weights]
    copied, other = COPIES[way]((weights, optimizer))
    for update in range(3, 6):
        step(other, copied, gradients_of(update, copied))
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert not any(torch.equal(w, b) for w, b in zip(copied, before, strict=True))
    for update in range(3, 6):
        step(optimizer, weights, gradients_of(update, weights))
    assert_equal_states(optimizer, other)
    assert all(torch.equal(w, c) for w, c in zip(weights, copied, strict=True))


def vector(model: Any) -> torch.Tensor:
    return parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("way", COPIES)
def test_a_per_layer_copy_has_its_own_hooks(way: str) -> None:
    model = tiny_llama()
    optimizer = optimizers.build_optimizer("galore_adamw", model, 1e-3, rank=8, per_layer=True)
    train(model, optimizer, 0, 2)
    before = vector(model)
    copied, other = COPIES[way]((model, optimizer))
    train(copied, other, 2, 4)
    assert torch.equal(vector(model), before)
    train(model, optimizer, 2, 4)
    assert torch.equal(vector(model), vector(copied)) and not torch.equal(vector(model), before)


def test_a_compiled_optimizer_can_be_copied() -> None:
    weights = weights_of((8, 8))
    optimizer = METHODS["AdamWSN"](weights, execution="compiled")
    step(optimizer, weights, gradients_of(0, weights))
    copied, other = pickle.loads(pickle.dumps((weights, optimizer)))
    step(other, copied, gradients_of(1, copied))
    step(optimizer, weights, gradients_of(1, weights))
    assert torch.equal(weights[0], copied[0])


@pytest.mark.parametrize("per_layer", [False, True])
def test_accelerate_prepares_it(per_layer: bool) -> None:
    """`prepare` loads the state into itself and puts wrappers around optimizer and scheduler."""
    accelerate = pytest.importorskip("accelerate")
    plain, prepared = tiny_llama(), tiny_llama()

    def made(model: Any) -> tuple[Any, Any]:
        optimizer = optimizers.build_optimizer("ldadamw", model, 1e-2, rank=4, per_layer=per_layer)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0 / (update + 1))

    optimizer, scheduler = made(plain)
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped, *rest = accelerator.prepare(prepared, *made(prepared))
    for update in range(3):
        loss_of(plain, update).backward()
        accelerator.backward(loss_of(wrapped, update))
        for other in (optimizer, rest[0]):
            other.step()
        for other in (scheduler, rest[1]):
            other.step()
        for other in (optimizer, rest[0]):
            other.zero_grad()
    assert torch.equal(vector(plain), vector(prepared))
    assert not torch.equal(vector(plain), vector(tiny_llama()))


def test_settings_of_the_class_come_along() -> None:
    """Adam-mini's heads decide the blocks of a group that is added later."""
    weights = weights_of((8, 8), (8, 8))
    optimizer = optimizers.AdamMini([("a.q_proj.weight", weights[0])], dim=8, n_heads=4)
    other = copy.deepcopy(optimizer)
    other.add_param_group({"params": [("b.q_proj.weight", weights[1])]})
    assert other.state[weights[1]]["exp_avg_sq"].numel() == 4
    assert weights[1] not in optimizer.managed
