"""What a state dict must match, what is filled in, and what is refused by name; then nothing has changed."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from tests.optimizers.makers import METHODS
from tests.optimizers.models import tiny_llama
from tests.optimizers.test_guards import gradients_of, step, weights_of
from tests.optimizers.test_state import assert_equal_states, tensors_of, train
from tests.tiny_runs import ROOT, environment


def named(names: str, order: str | None = None) -> tuple[dict[str, nn.Parameter], Any]:
    """Parameters a, b, c of different shapes, in Lion with their names in a given order, in two groups."""
    weights = dict(zip("abc", weights_of((7, 5), (5, 7), (6,)), strict=True))
    pairs = [(names[order.index(n)] if order else n, weights[n]) for n in (order or names)]
    return weights, optimizers.Lion([{"params": pairs[:2]}, {"params": pairs[2:]}], lr=0.01)


def test_parameters_are_matched_by_name() -> None:
    weights, one = named("abc")
    step(one, list(weights.values()), gradients_of(0, list(weights.values())))
    others, two = named("cab")
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for name, weight in others.items():
        assert torch.equal(two.state[weight]["exp_avg"], one.state[weights[name]]["exp_avg"])


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_in_names_change_nothing(wrap: str) -> None:
    one, two = (optimizers.Lion([(f"{w}layer.weight", weights_of((7, 5))[0])]) for w in ("", wrap))
    two.load_state_dict(one.state_dict())
    one.load_state_dict(two.state_dict())


def test_another_model_is_refused_by_its_names() -> None:
    weights = weights_of((7, 5))
    one, two = (optimizers.Lion([(name, weights[0])]) for name in ("encoder.weight", "decoder.weight"))
    with pytest.raises(ValueError, match=r"missing from it \(decoder.weight\).*not known here \(encoder.weight\)"):
        two.load_state_dict(one.state_dict())


def test_a_missing_group_key_stays_as_constructed_and_is_counted() -> None:
    weights = weights_of((7, 5))
    optimizer = METHODS["GaLoreAdamW-std"](weights)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["base_lr"], saved["param_groups"][0]["update_proj_gap"]
    optimizer.load_state_dict(saved)
    step(optimizer, weights, gradients_of(0, weights))
    assert optimizer.param_groups[0]["update_proj_gap"] == 3
    assert {text for text in optimizer.warnings if "saved groups have no" in text} == {
        f"the saved groups have no {key}: it stays as constructed" for key in ("base_lr", "update_proj_gap")
    }


def foreign(weights: list[nn.Parameter]) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    step(optimizer, weights, gradients_of(0, weights))
    return optimizer.state_dict()


def test_a_foreign_state_is_refused_by_name_and_changes_nothing() -> None:
    weights = weights_of((7, 5))
    saved = foreign(weights)
    optimizer = METHODS["AdamWSN"](weights)
    before = [t.clone() for t in tensors_of(optimizer)]
    with pytest.raises(ValueError, match="amsgrad.*AdamWSN does not know.*another optimizer"):
        optimizer.load_state_dict(saved)
    for bad, says in (
        ({"model": {}}, "no optimizer state: it has model"),
        ({"state": {}, "param_groups": [{"lr": 1.0}]}, "no optimizer state"),
        ({"state": [], "param_groups": optimizer.state_dict()["param_groups"]}, "no optimizer state"),
        ({**optimizer.state_dict(), "state": {0: {"step": 3}}}, "missing"),
        ({**optimizer.state_dict(), "state": {}}, "missing"),
    ):
        with pytest.raises(ValueError, match=says):
            optimizer.load_state_dict(bad)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(optimizer), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_groups_that_were_saved_apart_are_not_mixed() -> None:
    weights, one = named("abc")
    one.param_groups[1]["lr"] = 0.5
    others, two = named("cab")
    with pytest.raises(ValueError, match="in one group here and were saved with different lr"):
        two.load_state_dict(one.state_dict())


def test_what_schedulers_write_into_groups_is_loaded() -> None:
    weights = weights_of((7, 5))
    one, two = METHODS["AdamWSN"](weights), METHODS["AdamWSN"](weights_of((7, 5)))
    torch.optim.lr_scheduler.OneCycleLR(one, max_lr=0.1, total_steps=9)
    two.load_state_dict(one.state_dict())
    assert two.param_groups[0]["max_lr"] == 0.1


def test_hooks_of_loading_are_called() -> None:
    weights = weights_of((7, 5))
    optimizer, seen = METHODS["AdamWSN"](weights), []
    optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after"]


def test_a_frozen_parameter_needs_no_saved_state() -> None:
    """torch's flattened state dicts leave frozen parameters out."""
    models = tiny_llama(), tiny_llama()
    made = []
    for model in models:
        model.model.norm.requires_grad_(False)
        made.append(optimizers.Lion(model.named_parameters()))
    train(models[0], made[0], 0, 2)
    saved = copy.deepcopy(made[0].state_dict())
    index = [n for n, _ in models[0].named_parameters()].index("model.norm.weight")
    del saved["state"][index]
    made[1].load_state_dict(saved)
    assert_equal_states(*made)


def test_the_state_dicts_of_two_fsdp_processes() -> None:
    """Full, sharded and flattened, saved and loaded, and a refusal of one process that all learn of."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.optimizers.fsdp_states"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stdout.count("all hold") == 2
