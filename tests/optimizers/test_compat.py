"""Code written for the released packages: a changed import is enough, and the steps are theirs."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch
from torch import nn

import optimizers
from optimizers import compat


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def train(model: nn.Module, optimizer: Any) -> list[torch.Tensor]:
    for seed in range(4):
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        nn.functional.cross_entropy(model(images), torch.arange(6) % 5).backward()
        if hasattr(optimizer, "warmup_step") and not getattr(optimizer, "has_warmup", True):
            optimizer.warmup_step()
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def assert_alike(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b, start in zip(ours, theirs, network().parameters(), strict=True):
        assert (a - b).norm() <= 1e-3 * (b - start).norm() + 1e-6


def test_sgd_sai() -> None:
    package, mine, other = pytest.importorskip("sgd_sai"), network(), network()
    settings = {"lr": 1e-3, "momentum": 0.9, "eps": 1e-8, "weight_decay": 0.1}
    ours = compat.SGD_sai(mine.parameters(), **settings)
    assert_alike(train(mine, ours), train(other, package.SGD_sai(other.parameters(), **settings)))


def test_adam_mini_on_no_transformer() -> None:
    """dim and n_heads left out, as its text allows: tensors whose names tell nothing are one block each."""
    package, mine, other = pytest.importorskip("adam_mini"), network(), network()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "verbose": False, "model_sharding": None}
    ours = compat.Adam_mini(named_parameters=mine.named_parameters(), **settings)
    theirs = package.Adam_mini(named_parameters=other.named_parameters(), **settings)
    assert_alike(train(mine, ours), train(other, theirs))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_galore() -> None:
    package, mine, other = pytest.importorskip("galore_torch"), network(), network()

    def groups(model: Any) -> list[dict[str, Any]]:
        rest = [p for n, p in model.named_parameters() if n != "3.weight"]
        keys = {"rank": 2, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
        return [{"params": rest}, {"params": [model[3].weight], **keys}]

    ours = compat.GaLoreAdamW(groups(mine), lr=1e-2, no_deprecation_warning=True)
    assert_alike(train(mine, ours), train(other, package.GaLoreAdamW(groups(other), lr=1e-2)))


def test_subset_norm_and_ldadam_groups() -> None:
    model = network()
    linear, rest = [model[3].weight], [p for n, p in model.named_parameters() if n != "3.weight"]
    for kind, key in ((compat.AdamwSN, "sn"), (compat.AdamwSNG, "sn"), (compat.LDAdamW, "enable_lowrank")):
        train(model, kind([{"params": linear, key: True}, {"params": rest, key: False}], lr=1e-3))


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 4, 5), (2, 3, 4, 5)])
def test_adafactor_above_two_dimensions(shape: tuple[int, ...]) -> None:
    reference = pytest.importorskip("transformers.optimization").Adafactor
    mine, other = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    matrix = nn.Parameter(torch.zeros(4, 4))
    ours = optimizers.GaLoreAdafactor([{"params": [mine]}, {"params": [matrix], "rank": 2}], lr=1.0)
    theirs = reference([other], lr=1.0, scale_parameter=False, relative_step=False, warmup_init=False)
    for seed in range(3):
        mine.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_gradient_without_spread_has_a_bounded_gain() -> None:
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = optimizers.SGDBoost([weight], lr=0.01, weight_decay=0.0)
    weight.grad = torch.ones(6, 5)
    optimizer.step()
    assert float(optimizer.state[weight]["gain"]) == pytest.approx(10 * 30**0.5)


@pytest.mark.parametrize("keys", [{"proj_type": "random"}, {"basis_method": "randomized"}])
def test_random_bases_under_another_default_device(keys: dict[str, str]) -> None:
    steps = []
    for device in ("cpu", "meta"):
        weight = nn.Parameter(torch.zeros(6, 5))
        weight.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
        with torch.device(device):
            optimizers.GaLoreAdamW([{"params": [weight], "rank": 2, **keys}], lr=1.0).step()
        steps.append(weight.detach())
    assert torch.equal(*steps)
