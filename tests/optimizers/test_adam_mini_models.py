"""Adam-mini on models other than LLaMA: fused, transposed, tied and stacked matrices have the blocks of plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from tests.optimizers.architectures import ARCHITECTURES, loss, tiny

HIDDEN, HEADS, KEY_HEADS, SIZE = 12, 4, 2, 3


def updated(names: dict[str, Tensor], gradients: list[dict[str, Tensor]], **arguments: Any) -> dict[str, Tensor]:
    """Matrices after updates with these gradients."""
    weights = {name: nn.Parameter(value.clone()) for name, value in names.items()}
    optimizer = optimizers.AdamMini(weights.items(), lr=0.1, weight_decay=0.1, **arguments)
    for step in gradients:
        for name, weight in weights.items():
            weight.grad = step[name].clone()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def matrices(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS])
def test_a_fused_matrix_is_query_key_and_value(key_heads: int) -> None:
    rows = {"q_proj": HEADS * SIZE, "k_proj": key_heads * SIZE, "v_proj": key_heads * SIZE}
    apart = [{f"{n}.weight": matrices(10 * i + j, r) for j, (n, r) in enumerate(rows.items())} for i in range(4)]
    fused = [{"qkv_proj.weight": torch.cat(list(step.values()))} for step in apart]
    heads = {"n_heads": HEADS, "n_kv_heads": key_heads}
    want = torch.cat(list(updated(apart[0], apart[1:], **heads).values()))
    assert torch.allclose(updated(fused[0], fused[1:], **heads)["qkv_proj.weight"], want, atol=1e-6)


def test_a_matrix_fused_head_by_head() -> None:
    """GPT-NeoX: the query, key and value of a head lie together."""
    rows = dict.fromkeys(("q_proj", "k_proj", "v_proj"), HEADS * SIZE)
    apart = [{f"{n}.weight": matrices(10 * i + j, r) for j, (n, r) in enumerate(rows.items())} for i in range(4)]

    def interleaved(step: dict[str, Tensor]) -> Tensor:
        return torch.stack([m.view(HEADS, SIZE, HIDDEN) for m in step.values()], dim=1).reshape(-1, HIDDEN)

    fused = [{"query_key_value.weight": interleaved(step)} for step in apart]
    want = interleaved(updated(apart[0], apart[1:], n_heads=HEADS))
    assert torch.allclose(updated(fused[0], fused[1:], n_heads=HEADS)["query_key_value.weight"], want, atol=1e-6)


def test_a_transposed_layer_has_its_neurons_in_the_columns() -> None:
    """GPT-2's Conv1D: every matrix moves as its transpose in a linear layer does, the fused one included."""
    model = tiny("GPT-2")
    optimizer = optimizers.build_optimizer("adam_mini", model, 0.1)
    names = {p: n for n, p in model.named_parameters()}
    rename = {"c_attn": "qkv_proj", "attn.c_proj": "attn.o_proj", "c_fc": "up_proj", "mlp.c_proj": "down_proj"}
    starts = {n: p.detach().clone() for p, n in names.items()}
    generator = torch.Generator().manual_seed(5)
    steps = [{n: torch.randn(p.shape, generator=generator) for p, n in names.items()} for _ in range(3)]
    for step in steps:
        for p, n in names.items():
            p.grad = step[n].clone()
        optimizer.step()
    for old, new in rename.items():
        name = next(n for n in starts if f"{old}.weight" in n)
        want = nn.Parameter(starts[name].T.contiguous())
        other = optimizers.AdamMini([(f"{new}.weight", want)], lr=0.1, n_heads=4)
        for step in steps:
            want.grad = step[name].T.contiguous()
            other.step()
        assert torch.allclose(model.get_parameter(name).T, want, atol=1e-6), name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains(name: str) -> None:
    """Tied, fused, grouped, stacked and convolutional ones, with no word about their roles."""
    model = tiny(name)
    optimizer = optimizers.build_optimizer("adam_mini", model, 1e-3)
    before = loss(model, name)
    for _ in range(3):
        loss(model, name).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss(model, name) < before
    spared = sum(s["exp_avg_sq"].numel() for s in optimizer.state.values())
    assert spared < 0.1 * sum(p.numel() for p in model.parameters())


def test_a_tied_weight_has_a_block_for_each_token() -> None:
    model = tiny("Gemma")
    optimizer = optimizers.build_optimizer("adam_mini", model, 1e-3)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert optimizer.state[model.lm_head.weight]["exp_avg_sq"].shape == (96, 1)


def test_roles_by_name() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Parameter(torch.randn(8, 6))

    with pytest.raises(ValueError, match=r"inside \(8, 6\) is a parameter of unknown role; state it with roles="):
        optimizers.build_optimizer("adam_mini", Mixer(), 1e-3)
    model = Mixer()
    optimizer = optimizers.build_optimizer("adam_mini", model, 1e-3, roles={"inside": "mlp"})
    assert optimizer.state[model.inside]["exp_avg_sq"].shape == (8, 1)
    with pytest.raises(ValueError, match="choose among"):
        optimizers.build_optimizer("adam_mini", Mixer(), 1e-3, roles={"inside": "mpl"})


def test_a_model_without_a_configuration_says_its_heads_in_its_modules() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_head = 4
            self.q_proj = nn.Linear(16, 16, bias=False)

    model = nn.ModuleDict({"attn": Attention()})
    optimizer = optimizers.build_optimizer("adam_mini", model, 1e-3)
    assert optimizer.state[model["attn"].q_proj.weight]["exp_avg_sq"].shape == (4, 1)
    del model["attn"].n_head
    with pytest.raises(ValueError, match="one block per head: say n_heads"):
        optimizers.build_optimizer("adam_mini", model, 1e-3)


def test_torchs_own_attention() -> None:
    """nn.MultiheadAttention holds query, key and value in one parameter, and says its heads."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    optimizer = optimizers.build_optimizer("adam_mini", model, 1e-3)
    assert optimizer.state[model.layers[0].self_attn.in_proj_weight]["exp_avg_sq"].shape == (4 + 4 + 16, 1)
    model(torch.randn(2, 3, 16)).square().sum().backward()
    optimizer.step()
