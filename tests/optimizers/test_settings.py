"""What each parameter is given: group settings, roles, routes, and the learning rates that are applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import optimizers
from optimizers import galore
from tests.optimizers.comparison import compare
from tests.optimizers.makers import GALORE
from tests.optimizers.models import tiny_llama
from tests.optimizers.problems import random_problem


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ldadam_group_settings_stay_in_their_group(order: tuple[int, ...]) -> None:
    """Rank and rho of one group used to leak into those that follow; here one group leaves both to the defaults."""
    groups: list[dict[str, Any]] = [
        {"params": ["a"], "enable_lowrank": True, "rank": 2, "rho": 0.5},
        {"params": ["b"], "enable_lowrank": True},
        {"params": ["c"]},
    ]
    shapes = {"a": (30, 20), "b": (30, 20), "c": (30, 20)}
    problem = random_problem("LDAdamW", shapes, [groups[i] for i in order], 3)
    problem.adds_to_gradient = True
    result = compare(problem)
    assert result.deviation <= result.limit, result


@pytest.mark.parametrize("class_name", GALORE)
def test_galore_group_settings_stay_in_their_group(class_name: str) -> None:
    groups: list[dict[str, Any]] = [
        {"params": ["a"], "rank": 2, "update_proj_gap": 2, "scale": 1.5, "proj_type": "left", "lr": 0.02},
        {"params": ["b"], "rank": 4, "update_proj_gap": 5, "scale": 0.1, "proj_type": "right", "weight_decay": 0.7},
        {"params": ["c"]},
    ]
    shapes = {"a": (9, 7), "b": (9, 7), "c": (9, 7)}
    problem = random_problem(class_name, shapes, groups, 4, weight_decay=0.0)
    result = compare(problem)
    assert result.deviation <= result.limit, result


def mini(*named: tuple[str, tuple[int, ...]], **more: Any) -> Any:
    pairs = [(name, nn.Parameter(torch.ones(shape))) for name, shape in named]
    return optimizers.AdamMini(pairs, **{"dim": 8, "n_heads": 2, **more})


@pytest.mark.parametrize("name", ["encoder.mystery", "decoder.mixing.weight"])
def test_adam_mini_refuses_what_it_would_have_to_guess(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        mini((name, (24, 8)))


def test_adam_mini_takes_stated_roles() -> None:
    """The stated role decides the block: one second moment a row, or one a head of four rows."""
    for role, expected in (("value", 8), ("query", 2)):
        optimizer = mini(("encoder.mystery", (8, 8)), roles={"mystery": role})
        (state,) = optimizer.state.values()
        assert min(t.numel() for k, t in state.items() if k != "step") == expected


def test_adam_mini_refuses_rows_that_do_not_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="head"):
        mini(("layers.0.self_attn.q_proj.weight", (9, 8)))


def tied_llama() -> LlamaForCausalLM:
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    return model


def test_subset_norm_treats_a_tied_embedding_as_the_linear() -> None:
    """One second moment a row, where an embedding of its own would have one an element."""
    for model, linear in ((tied_llama(), True), (tiny_llama(), False)):
        optimizer = optimizers.build_optimizer("adamw_sn", model, lr=0.01, beta1=0.0)
        embedding = model.model.embed_tokens.weight
        elements = sum(t.numel() for k, t in optimizer.state[embedding].items() if k != "step")
        assert elements == (embedding.shape[0] if linear else embedding.numel())


@pytest.mark.parametrize("name", ["galore_adamw", "ldadamw"])
def test_low_rank_methods_project_attention_and_mlp_only(name: str) -> None:
    model = tiny_llama()
    optimizer = optimizers.build_optimizer(name, model, lr=0.01, rank=4)
    projected = {n for n, p in model.named_parameters() if "basis" in optimizer.state[p]}
    expected = {n for n, p in model.named_parameters() if p.dim() == 2 and ("attn" in n or "mlp" in n)}
    assert projected == expected and len(expected) == 7


def test_effective_learning_rates_include_the_scale() -> None:
    optimizer = optimizers.build_optimizer("galore_adamw", tiny_llama(), lr=0.02, rank=4, galore_scale=0.25)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    assert sorted(optimizer.effective_learning_rates().values()) == pytest.approx([0.0025, 0.01])


def test_routing_table_names_every_route_and_the_total() -> None:
    model = tiny_llama()
    optimizer = optimizers.build_optimizer("galore_adamw", model, lr=0.02, rank=4)
    table = optimizer.routing_table()
    assert "64x64" in table and "96x64" in table and "total" in table
    assert f"{optimizer.state_bytes() / 2**20:.2f}" in table.splitlines()[-1]


def test_one_element_and_prime_tensors_of_the_general_subset_norm_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = [nn.Parameter(torch.ones(13)) for _ in range(3)]
    with caplog.at_level("WARNING"):
        optimizers.AdamWSNG(weights, subset_size=5)
    assert len(caplog.records) == 1 and "13" in caplog.text


def test_the_reported_rate_of_a_projected_sign_is_the_applied_one() -> None:
    optimizer = optimizers.build_optimizer("galore_lion", tiny_llama(), 0.01, rank=4, galore_scale=0.25)
    assert set(optimizer.effective_learning_rates().values()) == {0.01}


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("galore_adamw", {"proj_orthogonality": 0.1}, "continuous bases"),
        ("galore_adamw", {"proj_type": "full", "proj_orthogonality": 0.1}, "continuous bases"),
        ("galore_adafactor", {"rotate_moments": True}, "cannot be carried"),
        ("adamw_sn", {"stagger_refresh": True}, "refreshes nothing"),
        ("sgd", {"weight_decay": 0.1, "execution": "compiled"}, "use adamw or sgd_boost"),
        ("adam", {"weight_decay": 0.1, "state_dtype": "int8"}, "use adamw or sgd_boost"),
    ],
)
def test_settings_without_effect_are_refused(method: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        optimizers.build_optimizer(method, tiny_llama(), 1e-3, **arguments)


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_coupled_decay_in_float32_is_that_of_torch_and_its_memory_can_be_predicted(method: str) -> None:
    assert type(optimizers.build_optimizer(method, tiny_llama(), 1e-3, weight_decay=0.1)).__module__.startswith("torch")
    assert optimizers.build_optimizer(method, tiny_llama().to("meta"), 1e-3, weight_decay=0.1).state_bytes() > 0


@pytest.mark.parametrize(("method", "arguments"), [("ldadamw", {"beta1": 0.0, "rank": 4}), ("lion", {"beta2": 0.0})])
def test_an_average_with_beta_zero_is_the_last_gradient(method: str, arguments: dict[str, Any]) -> None:
    """Where later mathematics reads it, it must be there."""
    model = tiny_llama()
    optimizer = optimizers.build_optimizer(method, model, 1e-3, **arguments)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert all(state["exp_avg"].any() for state in optimizer.state.values() if "exp_avg" in state)
    if method == "lion":
        assert all(torch.equal(optimizer.state[p]["exp_avg"], p.grad) for p in model.parameters())


def test_a_failing_second_decomposition_leaves_both_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.randn(12, 9))
    group = {"params": [weight], "rank": 3, "update_proj_gap": 1, "proj_type": "full", "basis_method": "randomized"}
    optimizer = optimizers.GaLoreAdamW([group], lr=1e-2)
    weight.grad = torch.randn(12, 9)
    optimizer.step()
    before = [optimizer.state[weight][name].clone() for name in ("basis", "basis_right")]
    made, true_basis = [], galore.pr.randomized_basis

    def fails_at_the_second(*arguments: Any) -> torch.Tensor:
        made.append(arguments)
        if len(made) == 2:
            raise torch.linalg.LinAlgError
        return true_basis(*arguments)

    monkeypatch.setattr(galore.pr, "randomized_basis", fails_at_the_second)
    weight.grad = torch.randn(12, 9)
    optimizer.step()
    assert len(made) == 2 and sum(optimizer.warnings.values())
    after = [optimizer.state[weight][name] for name in ("basis", "basis_right")]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
