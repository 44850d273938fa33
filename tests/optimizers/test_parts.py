"""Rates and decay by role, for every method: what AdamW with torch's parameter groups does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from tests.optimizers.models import loss_of, tiny_llama

RATIOS = {"embedding_lr_ratio": 3.0, "head_lr_ratio": 0.5, "vector_lr_ratio": 2.0}
EVERY = [name for name in optimizers.available() if name != "adam8bit"]


def biased() -> Any:
    """Biases, norms, an embedding and a head."""
    model = tiny_llama()
    attention = model.model.layers[0].self_attn
    for name in ("q_proj", "v_proj"):  # a key's bias has no gradient
        old = getattr(attention, name)
        new = nn.Linear(old.in_features, old.out_features)
        new.weight = old.weight
        nn.init.zeros_(new.bias)
        setattr(attention, name, new)
    return model


def part_of(name: str) -> str:
    if name.endswith("bias"):
        return "biases"
    if "norm" in name:
        return "norms"
    return "embeddings" if "embed" in name else "heads" if "lm_head" in name else "body"


def train(model: Any, optimizer: Any) -> None:
    for update in range(3):
        loss_of(model, update).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("options", [{}, {"state_dtype": "float32", "execution": "eager", "per_layer": True}])
@pytest.mark.parametrize("exclude", [None, "none", "norms,biases,embeddings", ["vectors"], "heads"])
def test_adamw_with_torchs_groups(exclude: Any, options: dict[str, Any]) -> None:
    """By torch's own class and by the engine's rule (per-layer)."""
    rates = {"embeddings": 3e-2, "heads": 5e-3, "norms": 2e-2, "biases": 2e-2, "body": 1e-2}
    words = exclude.split(",") if isinstance(exclude, str) else exclude or []
    spared = {"norms", "biases"} if "vectors" in words else set(words)
    model, other = biased(), biased()
    arguments = {} if exclude is None else {"decay_exclude": exclude}
    optimizer = optimizers.build_optimizer("adamw", model, 1e-2, weight_decay=0.5, **RATIOS, **arguments, **options)
    groups = [
        {"params": [p], "lr": rates[part_of(n)], "weight_decay": 0.0 if part_of(n) in spared else 0.5}
        for n, p in other.named_parameters()
    ]
    train(model, optimizer)
    train(other, torch.optim.AdamW(groups, lr=1e-2))
    for (name, ours), theirs, start in zip(
        model.named_parameters(), other.parameters(), biased().parameters(), strict=True
    ):
        assert (ours - theirs).norm() <= 1e-4 * (theirs - start).norm(), name


@pytest.mark.parametrize("method", EVERY)
def test_every_method_takes_them(method: str) -> None:
    """Each group's rate is the ordinary one times its ratio, whatever the method's own rates are."""
    plain = optimizers.build_optimizer(method, tiny_llama(), 1e-3)
    split = optimizers.build_optimizer(method, tiny_llama(), 1e-3, weight_decay=0.1, decay_exclude="heads", **RATIOS)

    def rates(optimizer: Any, key: str) -> dict[str, float]:
        return {n: g[key] for g in optimizer.param_groups for n in g["param_names"]}

    before, after, decay = rates(plain, "lr"), rates(split, "lr"), rates(split, "weight_decay")
    factor = {"embeddings": 3.0, "heads": 0.5, "norms": 2.0}
    assert before.keys() == after.keys()
    for name in after:
        assert after[name] == pytest.approx(before[name] * factor.get(part_of(name), 1.0)), name
        assert decay[name] == (0.0 if part_of(name) == "heads" else 0.1), name


def test_the_default_of_each_paper_stays() -> None:
    """Adam-mini's authors spare norms and biases; a list replaces that, none of it decays what they spare."""

    def spared(**arguments: Any) -> set[str]:
        optimizer = optimizers.build_optimizer("adam_mini", biased(), 1e-3, weight_decay=0.1, **arguments)
        return {part_of(n) for g in optimizer.param_groups for n in g["param_names"] if g["weight_decay"] == 0.0}

    assert spared() == {"norms", "biases"}
    assert spared(decay_exclude="embeddings") == {"embeddings"}
    assert spared(decay_exclude="none") == set()


def test_they_are_in_the_routing_table() -> None:
    optimizer = optimizers.build_optimizer("galore_adamw", tiny_llama(), 1e-3, rank=4, weight_decay=0.1, **RATIOS)
    lines = {line.split()[0]: line.split() for line in optimizer.routing_table().splitlines()}
    assert lines["role"][3:5] == ["lr", "decay"]
    assert [lines[role][3:5] for role in ("embedding", "head", "norm", "query")] == [
        ["0.003", "0.1"],
        ["0.0005", "0.1"],
        ["0.002", "0.1"],
        ["0.001", "0.1"],
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decay_exclude": "norm"}, "decay_exclude='norm': choose among norms, biases"),
        ({"embedding_lr_ratio": 0.0}, "embedding_lr_ratio=0.0: it must be above 0"),
        ({"embeding_lr_ratio": 2.0}, "embeding_lr_ratio"),
        ({"target_modules": "("}, "no regular expression"),
    ],
)
def test_bad_values(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        optimizers.build_optimizer("lion", tiny_llama(), 1e-3, **arguments)
    assert says in str(refused.value)


def test_a_ratio_that_nothing_answers_to() -> None:
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="head_lr_ratio=2.*tied to the embedding"):
        optimizers.build_optimizer("lion", model, 1e-3, head_lr_ratio=2.0)
