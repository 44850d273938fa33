"""The released packages of the papers' authors, and bitsandbytes, where they agree with the specification.

Each is optional: a test skips when its package cannot be imported. None is trusted beyond what is said here.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from tests.optimizers.problems import llama_shapes

UPDATES = 9
LIMIT = 2e-4  # of the distance moved: both sides round in float32, moments are at most 9 updates old


def parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(0.2 * torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def drive(optimizer: Any, weights: dict[str, nn.Parameter], lr_name: str = "lr") -> dict[str, Tensor]:
    """Updates with a fixed sequence of gradients and a moving learning rate; the distance moved, by name."""
    start = {name: p.detach().clone() for name, p in weights.items()}
    generator = torch.Generator().manual_seed(2)
    base = optimizer.param_groups[0][lr_name]
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group[lr_name] = base * (1 - 0.08 * update)
        for p in weights.values():
            p.grad = 0.1 * torch.randn(p.shape, generator=generator)
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() - start[name] for name, p in weights.items()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], limit: float = LIMIT) -> None:
    for name, moved in theirs.items():
        distance = ((ours[name] - moved).abs().max() / moved.abs().max()).item()
        assert distance <= limit, (name, distance)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adam_mini_package(kv_heads: int, decay: float) -> None:
    """Its head size is dim * dim // heads elements, right wherever head_dim is dim // heads, grouped queries too."""
    package = pytest.importorskip("adam_mini")
    shapes = llama_shapes(kv_heads, 4 // kv_heads, 8, 32)
    settings = {
        "lr": 0.01,
        "betas": (0.9, 0.95),
        "weight_decay": decay,
        "dim": 32,
        "n_heads": 4,
        "n_kv_heads": kv_heads,
    }
    mine, theirs = parameters(shapes), parameters(shapes)
    reference = package.Adam_mini(list(theirs.items()), verbose=False, **settings)
    assert_close(drive(optimizers.AdamMini(list(mine.items()), **settings), mine), drive(reference, theirs))


GALORE_SHAPES = {"tall": (20, 6), "wide": (6, 20), "square": (8, 8)}


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("kind", ["AdamW", "Adafactor"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_galore_package(kind: str, proj_type: str) -> None:
    """Refreshes before updates 1, 5 and 9. The package guesses the side to lift on from the low-rank shape, which is
    right for these shapes only: ranks are well below both sides, and square matrices are left out where it errs."""
    package = pytest.importorskip("galore_torch")
    shapes = {
        name: s for name, s in GALORE_SHAPES.items() if name != "square" or proj_type in ("left", "right", "full")
    }
    group = {"rank": 3, "update_proj_gap": 4, "scale": 0.5, "proj_type": proj_type}
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.5}
    if kind == "Adafactor":
        settings |= {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    mine, theirs = parameters({**shapes, "plain": (7, 9)}), parameters({**shapes, "plain": (7, 9)})

    def groups(weights: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": [weights[n] for n in shapes], **group}, {"params": [weights["plain"]]}]

    reference = getattr(package, f"GaLore{kind}")(groups(theirs), **settings)
    ours = drive(getattr(optimizers, f"GaLore{kind}")(groups(mine), **settings), mine)
    # `full`: R of a refresh is diagonal, its other entries are rounding noise of 1e-8 beside an eps of 1e-6.
    assert_close(ours, drive(reference, theirs), 2e-2 if proj_type == "full" else LIMIT)


def test_sgd_sai_package() -> None:
    package = pytest.importorskip("sgd_sai")
    shapes = {"w": (20, 6), "b": (6,)}
    mine, theirs = parameters(shapes), parameters(shapes)
    settings = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.5}
    reference = package.SGD_sai(list(theirs.values()), **settings)
    assert_close(drive(optimizers.SGDBoost(list(mine.values()), **settings), mine), drive(reference, theirs))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_unprojected_parameters_are_bitsandbytes(decay: float) -> None:
    """One tensor above 4096 elements and two below; on CPU bitsandbytes decays before the step.

    The limit is that of coding (see test_quantized_moments): a moment at the boundary of two codes takes either.
    """
    functional = pytest.importorskip("bitsandbytes")
    shapes = {"large": (80, 64), "small": (9, 9), "vector": (5,)}
    mine, theirs = parameters(shapes), parameters(shapes)
    settings = {"lr": 0.01, "weight_decay": decay}
    reference = drive(functional.optim.AdamW8bit(list(theirs.values()), **settings), theirs)
    projected = {"params": [nn.Parameter(torch.zeros(4, 4))], "rank": 2}  # no gradient: beside what is compared
    unprojected = optimizers.GaLoreAdamW8bit([{"params": list(mine.values())}, projected], **settings)
    assert_close(drive(unprojected, mine), reference, 1e-2)
    mine = parameters(shapes)
    ours = optimizers.build_optimizer("adam8bit", nn.ParameterDict(mine), **settings)
    assert_close(drive(ours, mine), reference, 1e-2)
    assert ours.state[mine["large"]]["exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_transformers_adafactor(decay: float, beta1: float) -> None:
    """Matrices and vectors, gradients that are clipped at first; scaling by parameters and relative steps off."""
    reference = pytest.importorskip("transformers.optimization").Adafactor
    shapes = {"tall": (20, 6), "wide": (6, 20), "vector": (5,)}
    mine, theirs = parameters(shapes), parameters(shapes)
    off = dict(scale_parameter=False, relative_step=False, warmup_init=False)
    expected = drive(reference(theirs.values(), lr=0.01, weight_decay=decay, beta1=beta1 or None, **off), theirs)
    ours = optimizers.build_optimizer("adafactor", nn.ParameterDict(mine), 0.01, weight_decay=decay, beta1=beta1)
    assert_close(drive(ours, mine), expected)
