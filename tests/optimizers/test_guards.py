"""Gradients and shapes that training meets sooner or later, for every method and mode."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers.primitives.projection import randomized_basis, singular_basis
from tests.optimizers.makers import METHODS, MOVING, REFRESHING, WITH_BASIS

SHAPES = [(7, 5), (5, 7), (4, 4)]


def weights_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients_of(seed: int, weights: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(w.shape, generator=generator) for w in weights]


def step(optimizer: Any, weights: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    """One update; None is a gradient that did not arrive. What zero_grad left is added to."""
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
    optimizer.step()
    optimizer.zero_grad()


def bases(optimizer: Any, weight: nn.Parameter) -> list[Tensor]:
    state = optimizer.state[weight]
    return [state[key].clone() for key in ("basis", "basis_right") if key in state]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_late_gradient_starts_its_own_count(name: str) -> None:
    """A parameter whose gradient first arrives with update 3 moves as if training had begun there."""
    late, fresh = weights_of(*SHAPES), weights_of(*SHAPES)
    optimizer = METHODS[name](late)
    for update in range(5):
        gradients: list[Tensor | None] = [*gradients_of(update, late)]
        step(optimizer, late, [gradients[0], gradients[1] if update >= 2 else None, gradients[2]])
    other = METHODS[name](fresh)
    for update in range(2, 5):
        step(other, fresh, [None, gradients_of(update, fresh)[1], None])
    # A random basis is drawn per parameter and update; the count of the parameter decides it, not the call's.
    assert torch.equal(late[1], fresh[1])


@pytest.mark.parametrize("name", METHODS)
def test_parameter_without_gradient_stays(name: str) -> None:
    weights = weights_of(*SHAPES)
    start = weights[1].detach().clone()
    optimizer = METHODS[name](weights, weight_decay=0.1)
    for update in range(3):
        gradients: list[Tensor | None] = [*gradients_of(update, weights)]
        step(optimizer, weights, [gradients[0], None, gradients[2]])
    assert torch.equal(weights[1], start)


@pytest.mark.parametrize("name", METHODS)
def test_zero_gradients_first(name: str) -> None:
    """Nothing moves while gradients are zero (no decay here), and training starts with the first that is not."""
    weights = weights_of(*SHAPES, (6,), (1,))
    start = [w.detach().clone() for w in weights]
    optimizer = METHODS[name](weights)
    for _ in range(4):
        step(optimizer, weights, [torch.zeros_like(w) for w in weights])
    assert same(start, [w.detach() for w in weights])
    for update in range(4):
        step(optimizer, weights, gradients_of(update, weights))
    for weight, old in zip(weights, start, strict=True):
        assert torch.isfinite(weight).all() and not torch.equal(weight, old)


@pytest.mark.parametrize("name", METHODS)
def test_zero_gradients_later(name: str) -> None:
    weights = weights_of(*SHAPES, (6,), (1,))
    optimizer = METHODS[name](weights)
    for update in range(12):
        size = 0.0 if 2 <= update < 9 else 1.0
        step(optimizer, weights, [size * g for g in gradients_of(update, weights)])
    for weight in weights:
        assert torch.isfinite(weight).all()
        for tensor in optimizer.state[weight].values():
            assert torch.isfinite(tensor.float()).all()


@pytest.mark.parametrize("name", METHODS)
def test_non_contiguous_gradients_and_parameters(name: str) -> None:
    plain, strided = weights_of(*SHAPES), weights_of(*SHAPES)
    strided[1] = nn.Parameter(strided[1].detach().t().contiguous().t())
    assert not strided[1].is_contiguous()
    first, second = METHODS[name](plain), METHODS[name](strided)
    for update in range(5):
        gradients = gradients_of(update, plain)
        step(first, plain, gradients)
        step(second, strided, [g.t().contiguous().t() for g in gradients])
    for ours, theirs in zip(strided, plain, strict=True):
        # Not bit for bit: a matrix product over another stride may add in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", WITH_BASIS)
def test_non_finite_gradient_keeps_the_basis_and_is_counted(name: str, bad: float) -> None:
    """Also when a refresh is due (update 4, gap 3). Other parameters are not touched by it."""
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    for update in range(3):
        step(optimizer, weights, gradients_of(update, weights))
    before = bases(optimizer, weights[0])
    gradients = gradients_of(3, weights)
    gradients[0][1, 2] = bad
    step(optimizer, weights, gradients)
    assert same(before, bases(optimizer, weights[0]))
    assert sum(optimizer.warnings.values()) == 1
    assert all(torch.isfinite(w).all() for w in weights[1:])


@pytest.mark.parametrize("name", WITH_BASIS)
def test_first_gradient_non_finite(name: str) -> None:
    """The first basis waits for the first finite gradient; the weight does not move before."""
    weights = weights_of((7, 5))
    start = weights[0].detach().clone()
    optimizer = METHODS[name](weights)
    step(optimizer, weights, [torch.full((7, 5), math.nan)])
    assert torch.equal(weights[0], start)
    for update in range(4):
        step(optimizer, weights, gradients_of(update, weights))
    assert torch.isfinite(weights[0]).all() and not torch.equal(weights[0], start)


@pytest.mark.parametrize("name", REFRESHING)
def test_failing_svd_keeps_the_basis_and_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    for update in range(3):
        step(optimizer, weights, gradients_of(update, weights))
    before = [bases(optimizer, w) for w in weights]

    def fails(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", fails)
        step(optimizer, weights, gradients_of(3, weights))
    for old, weight in zip(before, weights, strict=True):
        assert same(old, bases(optimizer, weight))
        assert torch.isfinite(weight).all()
    assert sum(optimizer.warnings.values()) == len(weights)
    for update in range(4, 7):
        step(optimizer, weights, gradients_of(update, weights))
    assert not same(before[0], bases(optimizer, weights[0]))


@pytest.mark.parametrize("name", [n for n in MOVING if "LDAdamW-svd-" in n])
def test_failing_svd_of_a_moving_basis(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights)
    for update in range(2):
        step(optimizer, weights, gradients_of(update, weights))
    before = bases(optimizer, weights[0])

    def fails(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", fails)
        step(optimizer, weights, gradients_of(2, weights))
    assert same(before, bases(optimizer, weights[0]))
    assert sum(optimizer.warnings.values()) == len(weights)
    assert all(torch.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1), (1,), (13,), (2, 3), (31, 17)])
@pytest.mark.parametrize("name", METHODS)
def test_smallest_and_prime_shapes(name: str, shape: tuple[int, ...]) -> None:
    weights = weights_of(shape, (4, 4))  # a method for matrices is refused where there is none
    start = weights[0].detach().clone()
    optimizer = METHODS[name](weights)
    for update in range(7):
        step(optimizer, weights, gradients_of(update, weights))
    assert torch.isfinite(weights[0]).all() and not torch.equal(weights[0], start)
    assert (weights[0] - start).abs().max() < 100  # no exploding gain: seven steps of lr 0.01


@pytest.mark.parametrize("name", WITH_BASIS)
def test_rank_above_the_matrix(name: str) -> None:
    weights = weights_of(*SHAPES)
    optimizer = METHODS[name](weights, rank=1000)
    for update in range(5):
        step(optimizer, weights, gradients_of(update, weights))
    for weight in weights:
        assert torch.isfinite(weight).all()
        assert all(min(b.shape) <= min(weight.shape) for b in bases(optimizer, weight))


def test_gain_comes_from_the_first_gradient_that_is_not_zero() -> None:
    weight = weights_of((6, 4))[0]
    optimizer = optimizers.SGDBoost([weight], lr=0.1, weight_decay=0.0, momentum=0.0)
    step(optimizer, [weight], [torch.zeros(6, 4)])
    first, second = torch.randn(6, 4), torch.randn(6, 4)
    start = weight.detach().clone()
    step(optimizer, [weight], [first])
    step(optimizer, [weight], [second])
    gain = first.norm() / first.std()
    torch.testing.assert_close(start - weight.detach(), 0.1 * gain * (first + second), rtol=1e-5, atol=1e-6)


def test_warmup_step_is_idempotent() -> None:
    by_hand, plain = weights_of((6, 4), (3,)), weights_of((6, 4), (3,))
    first, second = optimizers.SGDBoost(by_hand, lr=0.1), optimizers.SGDBoost(plain, lr=0.1)
    for weight, gradient in zip(by_hand, gradients_of(0, by_hand), strict=True):
        weight.grad = gradient
    first.warmup_step()
    first.warmup_step()
    first.step()
    step(second, plain, gradients_of(0, plain))
    for weight, gradient in zip(by_hand, gradients_of(1, by_hand), strict=True):
        weight.grad = gradient
    first.warmup_step()
    first.step()
    step(second, plain, gradients_of(1, plain))
    assert same([w.detach() for w in by_hand], [w.detach() for w in plain])


@pytest.mark.parametrize("name", [n for n in REFRESHING if n.startswith("GaLoreAdamW-")])
def test_staggered_refreshes_are_spread(name: str) -> None:
    """All bases are there after update 1; then no update refreshes all, and each is refreshed once per gap."""
    weights = weights_of(*[(7, 5)] * 4)
    optimizer = METHODS[name](weights, update_proj_gap=4, stagger_refresh=True)
    step(optimizer, weights, gradients_of(0, weights))
    refreshed = []
    for update in range(1, 9):
        before = [bases(optimizer, w) for w in weights]
        step(optimizer, weights, gradients_of(update, weights))
        refreshed.append([not same(b, bases(optimizer, w)) for b, w in zip(before, weights, strict=True)])
    assert max(sum(row) for row in refreshed) == 1
    assert all(sum(column) == 2 for column in zip(*refreshed, strict=True))


def captured(matrix: Tensor, basis: Tensor, side: str) -> float:
    projected = matrix @ basis.mT if side == "right" else basis.mT @ matrix
    return (projected.norm() ** 2 / matrix.norm() ** 2).item()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(1376, 512), (512, 1376)])
def test_randomized_basis_captures_the_energy(shape: tuple[int, int], side: str) -> None:
    """On a spectrum that falls like 1/k, as gradients' do: within 1% of the best subspace of the same rank."""
    generator = torch.Generator().manual_seed(0)
    k = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], k, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(shape[1], k, generator=generator)).Q
    matrix = u * (1.0 / torch.arange(1, k + 1)) @ v.mT
    basis = randomized_basis(matrix, 128, side, torch.Generator().manual_seed(1))
    gram = basis @ basis.mT if side == "right" else basis.mT @ basis
    assert (gram - torch.eye(128)).abs().max() < 1e-4
    assert captured(matrix, basis, side) >= 0.99 * captured(matrix, singular_basis(matrix, 128, side), side)


@pytest.mark.slow
def test_randomized_basis_is_five_times_faster() -> None:
    matrix = torch.randn(1376, 512)

    def best(function: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    exact = best(lambda: singular_basis(matrix, 128, "right"))
    randomized = best(lambda: randomized_basis(matrix, 128, "right", torch.Generator().manual_seed(0)))
    assert exact >= 5 * randomized, (exact, randomized)
