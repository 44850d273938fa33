"""Which parameters are the body of which model, whatever wraps it; what is not found is an error with a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers.engine import parts, roles
from optimizers.engine.routing import body_routes, param_groups
from tests.optimizers.architectures import ARCHITECTURES, loss, tiny

MATRIX_METHODS = ("galore_adamw", "ldadamw")
WITHOUT_BODY = ("ResNet", "Mixtral")  # convolutions, and experts stacked in three dimensions
BODY: dict[str, dict[str, int]] = {
    "LLaMA": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 3},
    "BERT": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 2},
    "RoBERTa": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 2},
    "GPT-2": {"fused": 1, "attention_output": 1, "mlp": 2},
    "GPT-NeoX": {"fused_by_head": 1, "attention_output": 1, "mlp": 2},
    "Phi-3": {"fused": 1, "attention_output": 1, "mlp": 2},
    "Qwen3": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 3},
    "Gemma": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 3},
    "Mistral": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 3},
    "ViT": {"query": 1, "key": 1, "value": 1, "attention_output": 1, "mlp": 2},
}
OUTSIDE: dict[str, dict[str, int]] = {  # matrices and more that are no body
    "LLaMA": {"embedding": 1, "head": 1},
    "BERT": {"embedding": 3, "other": 1},
    "RoBERTa": {"embedding": 3, "head": 2},
    "GPT-2": {"embedding": 2},
    "GPT-NeoX": {"embedding": 1, "head": 1},
    "Phi-3": {"embedding": 1, "head": 1},
    "Qwen3": {"embedding": 1, "head": 1},
    "Gemma": {"embedding": 1},
    "Mistral": {"embedding": 1, "head": 1},
    "ViT": {"embedding": 2, "convolution": 1, "head": 1},
}


def count(found: list[str]) -> dict[str, int]:
    return {role: found.count(role) for role in dict.fromkeys(found)}


def body_names(model: nn.Module) -> set[str]:
    return {roles.plain_name(p.name) for p in roles.describe(model) if p.block}


@pytest.mark.parametrize("name", BODY)
def test_the_body_of_an_architecture(name: str) -> None:
    described = roles.describe(tiny(name))
    assert count([p.role for p in described if p.block]) == BODY[name]
    assert count([p.role for p in described if not p.block and p.tensor.ndim > 1]) == OUTSIDE[name]
    assert {p.role for p in described if p.tensor.ndim < 2} <= {"norm", "bias"}


@pytest.mark.parametrize("name", BODY)
@pytest.mark.parametrize("method", MATRIX_METHODS)
def test_the_body_gets_the_method(name: str, method: str) -> None:
    model = tiny(name).eval()  # no dropout between the two losses
    optimizer = optimizers.build_optimizer(method, model, 1e-3, rank=4)
    (body,) = [g for g in optimizer.param_groups if g["route"] == "attention and MLP linears"]
    assert {roles.plain_name(n) for n in body["param_names"]} == body_names(model)
    assert all(type(optimizer.managed[p].rule).__name__.startswith(("Projected", "LowDim")) for p in body["params"])
    before = loss(model, name)
    before.backward()
    optimizer.step()
    assert loss(model, name) < before


@pytest.mark.parametrize("name", WITHOUT_BODY)
def test_a_model_whose_layers_the_method_would_miss_is_refused_with_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="--target_modules") as refused:
        optimizers.build_optimizer("galore_adamw", tiny(name), 1e-2)
    table = str(refused.value)
    assert "role" in table and ("convolution" in table or "4x192x64" in table)


class Wrapped(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("name", ["LLaMA", "GPT-2", "GPT-NeoX"])
@pytest.mark.parametrize("wrap", [Wrapped, torch.compile, lambda m: Wrapped(torch.compile(m))])
def test_wrappers_change_nothing(name: str, wrap: Any) -> None:
    model = tiny(name)
    plain = [(p.role, p.block, p.heads, p.key_heads) for p in roles.describe(model)]
    assert plain == [(p.role, p.block, p.heads, p.key_heads) for p in roles.describe(wrap(model))]
    tables = [optimizers.build_optimizer("adam_mini", m, 1e-3).routing_table() for m in (model, wrap(model))]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", ["LLaMA", "GPT-2", "Phi-3"])
def test_adapters_are_the_body_of_a_model_with_lora(name: str) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(name), peft.LoraConfig(r=4, target_modules="all-linear"))
    trainable = [p for p in roles.describe(model) if p.block]
    assert {p.role for p in trainable} == {"lora"}
    assert len(trainable) == 2 * sum(BODY[name].values())
    for method in ("adam_mini", "galore_adamw"):
        optimizer = optimizers.build_optimizer(method, model, 1e-2)
        before = loss(model, name)
        for _ in range(2):  # the first update of B makes A's gradient
            loss(model, name).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss(model, name) < before


class Odd(nn.Module):
    """Layers that neither types nor names give away."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.first = nn.Parameter(torch.randn(16, 32))
        self.second = nn.Linear(32, 16)
        self.read = nn.Linear(16, 20)


def test_targets_name_what_is_not_known() -> None:
    with pytest.raises(ValueError, match="matches no parameter of this model"):
        optimizers.build_optimizer("galore_adamw", Odd(), 1e-2, rank=4)
    for targets in (["first", "second"], "first second"):
        optimizer = optimizers.build_optimizer("galore_adamw", Odd(), 1e-2, rank=4, targets=targets)
        assert optimizer.param_groups[0]["param_names"] == ["first", "second.weight"]
    with pytest.raises(ValueError, match=r"'third' matches no matrix of this model:\nrole"):
        optimizers.build_optimizer("galore_adamw", Odd(), 1e-2, rank=4, target_modules="first third")


def test_a_small_share_of_the_layers_is_refused() -> None:
    """A model whose layers are mostly bare parameters: one linear layer among them is not the body."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(16, 16)
            self.experts = nn.Parameter(torch.randn(4, 64, 16))

    model = nn.Sequential(nn.Embedding(9, 16), nn.ModuleList([Block(), Block()]))
    with pytest.raises(ValueError, match="covers 6% of the matrices"):
        param_groups(model, body_routes())


def test_the_table_has_a_line_for_each_kind() -> None:
    described = roles.describe(tiny("LLaMA"))
    lines = parts.table(described, ["x"] * len(described)).splitlines()
    assert lines[0].split() == ["role", "shape", "tensors", "elements", "group"]
    assert [line.split()[:4] for line in lines if "88x64" in line or "96x64" in line] == [
        ["embedding", "96x64", "1", "6,144"],
        ["mlp", "96x64", "2", "12,288"],
        ["head", "96x64", "1", "6,144"],
    ]


@pytest.mark.parametrize(
    "kind",
    ["GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor", "GaLoreLion", "LDAdamW", "AdamWSN", "FiraAdamW", "AdamWSNSM"],
)
def test_a_class_that_would_not_be_its_method_is_refused(kind: str) -> None:
    """Plain AdamW under the name of a method: the key of groups that chooses it is named."""
    made = getattr(optimizers, kind)
    weight, vector = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(64))
    arguments = {"rank": 16} if kind == "LDAdamW" else {}
    with pytest.raises(ValueError, match="no parameter uses the method.*(a rank|enable_lowrank=True|sn=True)"):
        made([weight], lr=0.1, **arguments)
    keys = {"LDAdamW": {"enable_lowrank": True}, "AdamWSN": {"sn": True}}.get(kind, {"rank": 8})
    with pytest.raises(ValueError, match=r"no parameter of it can have it \(shapes \(64,\)\)"):
        made([{"params": [weight], **keys}, {"params": [vector], **keys}], lr=0.1)
    made([{"params": [weight], **keys}, {"params": [vector]}], lr=0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_documents_tables_are_these(name: str) -> None:
    from tests.scripts.model_tables import DOCUMENT, table_of

    assert f"### {name}\n\n```\n{table_of(name)}\n```" in DOCUMENT.read_text(encoding="utf-8")
