"""`optimizer.state` is the state: what others clear, replace, edit or load there is what the next update uses."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.utils import parameters_to_vector

import optimizers
from tests.optimizers.makers import METHODS
from tests.optimizers.models import tiny_llama
from tests.optimizers.test_guards import gradients_of, step, weights_of
from tests.optimizers.test_state import assert_equal_states, train

SHAPES = [(7, 5), (6,)]
NAMES = ("AdamWSN", "AdamMini", "SGDBoost", "Lion", "LDAdamW-power_iteration-feedback", "GaLoreAdamW-std")


def replace(optimizer: Any) -> None:
    optimizer.state = collections.defaultdict(dict)


def clear(optimizer: Any) -> None:
    optimizer.state.clear()


def delete(optimizer: Any) -> None:
    for param in list(optimizer.state):
        del optimizer.state[param]


def empty(optimizer: Any) -> None:
    for state in optimizer.state.values():
        state.clear()


def zero(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


def new_zeros(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for key, tensor in state.items():
            state[key] = torch.zeros_like(tensor)


@pytest.mark.parametrize("reset", [replace, clear, delete, empty, zero, new_zeros])
@pytest.mark.parametrize("name", NAMES)
def test_a_reset_state_is_that_of_a_fresh_optimizer(name: str, reset: Callable[[Any], None]) -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    for update in range(4):
        step(optimizer, weights, gradients_of(update, weights))
    reset(optimizer)
    fresh = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    other = METHODS[name](fresh)
    for update in range(4, 8):
        step(optimizer, weights, gradients_of(update, weights))
        step(other, fresh, gradients_of(update, fresh))
    assert all(torch.equal(w, f) for w, f in zip(weights, fresh, strict=True))
    assert len(optimizer.state_dict()["state"]) == len(SHAPES)
    assert_equal_states(optimizer, other)


def test_the_saved_state_after_a_reset_is_a_fresh_one() -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS["AdamWSN"](weights)
    step(optimizer, weights, gradients_of(0, weights))
    optimizer.state.clear()
    saved = optimizer.state_dict()["state"]
    assert [int(entry["step"]) for entry in saved.values()] == [0, 0]


def test_edited_moments_are_used() -> None:
    """ReLoRA prunes moments by replacing tensors and by writing into them."""
    weights, others = weights_of(*SHAPES), weights_of(*SHAPES)
    one, two = METHODS["Lion"](weights), METHODS["Lion"](others)
    for update in range(2):
        step(one, weights, gradients_of(update, weights))
        step(two, others, gradients_of(update, others))
    for param in weights:
        one.state[param]["exp_avg"] = one.state[param]["exp_avg"] * -1.0
    for param in others:
        two.state[param]["exp_avg"].mul_(-1.0)
    step(one, weights, gradients_of(2, weights))
    step(two, others, gradients_of(2, others))
    assert all(torch.equal(w, o) for w, o in zip(weights, others, strict=True))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda s: s.pop("exp_avg"), "missing ['exp_avg']"),
        (lambda s: s.update(exp_avg=torch.zeros(3)), "exp_avg of the state is torch.float32 (3,)"),
        (lambda s: s.update(exp_avg=s["exp_avg"].bfloat16()), "exp_avg of the state is torch.bfloat16"),
        (lambda s: s.update(projector=torch.zeros(3)), "not known here ['projector']"),
        (lambda s: s.update(exp_avg=None), "exp_avg of the state is a NoneType"),
    ],
)
def test_an_edit_that_fits_no_rule_is_refused_by_name(edit: Callable[[dict[str, Tensor]], Any], says: str) -> None:
    weights = weights_of((7, 5))
    optimizer = optimizers.Lion([("layer.weight", weights[0])])
    before = weights[0].detach().clone()
    edit(optimizer.state[weights[0]])
    with pytest.raises(ValueError, match="layer.weight") as refused:
        step(optimizer, weights, gradients_of(0, weights))
    assert says in str(refused.value)
    assert torch.equal(weights[0], before)


def test_a_count_that_others_write_as_a_number() -> None:
    weights = weights_of((7, 5))
    optimizer = METHODS["AdamWSN"](weights)
    optimizer.state[weights[0]]["step"] = 3
    step(optimizer, weights, gradients_of(0, weights))
    assert int(optimizer.state[weights[0]]["step"]) == 4


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["galore_adamw", "ldadamw", "sgd_boost", "adam_mini", "muon"])
def test_the_state_dicts_of_torch_distributed_checkpoint(name: str, flat: bool) -> None:
    """Saved under names, flattened or not, and loaded into an optimizer that has not stepped."""
    settings = {"rank": 4} if name in ("galore_adamw", "ldadamw") else {}
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    models = tiny_llama(), tiny_llama()
    one, two = (optimizers.build_optimizer(name, model, 1e-3, **settings) for model in models)
    train(models[0], one, 0, 2)
    saved = copy.deepcopy(get_optimizer_state_dict(models[0], one, options=options))
    set_optimizer_state_dict(models[1], two, saved, options=options)
    models[1].load_state_dict(models[0].state_dict())
    for model, optimizer in zip(models, (one, two), strict=True):
        train(model, optimizer, 2, 4)
    assert torch.equal(*(parameters_to_vector(model.parameters()) for model in models))
