"""Muon, SCALE, SOAP, APOLLO and AdamW-SNSM where they must be something simpler, and what they are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimizers
from optimizers.primitives import random_numbers
from optimizers.primitives.growth import limit_growth
from optimizers.primitives.polar import NEWTON_SCHULZ, POLAR_EXPRESS, POLAR_EXPRESS_MARGIN, polar
from tests.optimizers.test_equalities import SHAPES, assert_same, disjoint, moved
from tests.oracles.moments import Adam

EPS = 1e-3
"""Keeps the rounding of a projection and its lift from being a step where a gradient is nearly zero."""


def gradients(shape: tuple[int, ...], updates: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(shape, generator=generator) for _ in range(updates)]


def apply(optimizer: Any, weight: nn.Parameter, gradient: Tensor) -> Tensor:
    """How far one update moves the weight, per learning rate."""
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    return (before - weight.detach()) / optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (7,)])
@pytest.mark.parametrize("dims", [0, 100])
def test_soap_in_identity_bases_is_adam(dims: int, shape: tuple[int, ...]) -> None:
    """Without bases, and with bases that are set to the identity; the first gradient is skipped either way."""
    weight, other = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    ours = optimizers.SOAP([weight], lr=1.0, eps=1e-12, weight_decay=0.0, max_precond_dim=dims, betas=(0.9, 0.99))
    theirs = torch.optim.AdamW([other], lr=1.0, eps=1e-12, weight_decay=0.0, betas=(0.9, 0.99))
    for number, gradient in enumerate(gradients(shape, 6)):
        step = apply(ours, weight, gradient)
        if number == 0:
            assert not step.any()
            for name, tensor in ours.state[weight].items():
                if name.startswith("basis"):
                    tensor.copy_(torch.eye(len(tensor)))
        else:
            torch.testing.assert_close(step, apply(theirs, other, gradient), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_subspace_momentum_of_full_rank_with_subsets_of_one_is_adam(shape: tuple[int, int]) -> None:
    def make(weights: list[nn.Parameter]) -> Any:
        group = {"params": weights, "rank": 100, "subset_size": 1, "update_proj_gap": 1000}
        return optimizers.AdamWSNSM([group], lr=0.01, eps=EPS)

    def adam(weights: list[nn.Parameter]) -> Any:
        projected = {"params": [nn.Parameter(torch.zeros(4, 4))], "rank": 2}  # no gradient: beside what is compared
        return optimizers.GaLoreAdamW([{"params": weights}, projected], lr=0.01, eps=EPS)

    assert_same(moved(make, shape), moved(adam, shape))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_apollo_of_full_rank_scales_rows_as_adam_does(shape: tuple[int, int]) -> None:
    """In a basis that is a permutation, R is G: a channel's learning rate is |Adam's step| / |G| there."""
    weight = nn.Parameter(torch.zeros(shape))
    group = {"params": [weight], "rank": 100, "proj": "svd"}
    ours = optimizers.APOLLOAdamW([group], lr=1.0, disable_nl=True)
    adam, along = Adam((0.9, 0.999), 1e-6, "before"), 1 if shape[0] >= shape[1] else 0
    for number, gradient in enumerate(gradients(shape, 5)):
        gradient = disjoint(gradient) if number == 0 else gradient
        step = adam.step(gradient, number + 1, 1.0)
        sizes = [torch.linalg.vector_norm(x, dim=along, keepdim=True) for x in (step, gradient)]
        torch.testing.assert_close(apply(ours, weight, gradient), gradient * sizes[0] / sizes[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["main_param", "secondary_param"])
def test_lines_of_scale_have_root_mean_square_one(kind: str, axis: int) -> None:
    weight = nn.Parameter(torch.zeros(9, 5))
    optimizer = optimizers.SCALE([{"params": [weight], "param_type": kind, "col_dim": axis}], lr=0.5)
    for gradient in gradients((9, 5), 3):
        lines = apply(optimizer, weight, gradient).square().mean(axis).sqrt()
        torch.testing.assert_close(lines, torch.ones_like(lines), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("shape", [(24, 16), (12, 40), (16, 16)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("factor", ["original", "match_rms_adamw"])
def test_muon_is_torchs_to_the_rounding_of_its_products(factor: str, nesterov: bool, shape: tuple[int, int]) -> None:
    """torch's own products are bfloat16, another order of which moves the result by 2 to 8%; the digits are held by the
    recorded trajectories, whose products are float32."""

    def ours(weights: list[nn.Parameter]) -> Any:
        return optimizers.Muon(weights, lr=0.01, adjust_lr_fn=factor, nesterov=nesterov, ns_dtype="bfloat16")

    def theirs(weights: list[nn.Parameter]) -> Any:
        return torch.optim.Muon(weights, lr=0.01, adjust_lr_fn=factor, nesterov=nesterov)

    assert_same(moved(ours, shape), moved(theirs, shape), limit=0.1)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 9)])
def test_polar_factors_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kinds = ((NEWTON_SCHULZ, 1.0, 0.65, 1.25), (POLAR_EXPRESS, POLAR_EXPRESS_MARGIN, 0.85, 1.15))
    for coefficients, margin, low, high in kinds:
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        factor = polar(matrix, coefficients, 1e-7, margin)
        inside = u.mT @ factor @ vt.mT  # diagonal, where the vectors are those of the matrix
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4
        assert low < inside.diagonal().min() and inside.diagonal().max() < high
    assert not polar(torch.zeros(shape), NEWTON_SCHULZ, 1e-7).any()


def test_the_limiter_is_not_closed_by_a_gradient_of_zeros() -> None:
    """As published, the norm after one would be 1e-8, and grow by 1% an update. Not finite ones are not kept either."""
    norm = torch.zeros(1)
    unit = torch.ones(4)
    assert torch.equal(limit_growth(torch.zeros(4), norm), torch.zeros(4))
    torch.testing.assert_close(limit_growth(unit, norm), unit)
    torch.testing.assert_close(limit_growth(3 * unit, norm), 1.01 * unit)
    limit_growth(torch.zeros(4), norm)
    limit_growth(unit * math.nan, norm)
    torch.testing.assert_close(limit_growth(3 * unit, norm), 1.01**2 * unit)
    torch.testing.assert_close(limit_growth(unit, norm), unit)  # it follows a norm that shrinks at once
    torch.testing.assert_close(norm, torch.full((1,), 2.0))


def draw(seed: int, number: int, rows: int = 256, columns: int = 255) -> Tensor:
    return random_numbers.normal(rows, columns, random_numbers.key(seed, number), torch.device("cpu")).double()


def test_counted_random_numbers_are_normal_and_independent() -> None:
    """Moments, tails, neighbours and other draws within five standard errors."""
    x = draw(3, 1)
    n = x.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - expected) < 5 * math.sqrt(variance / n)
    assert abs(float((x.abs() > 2).double().mean()) - 0.0455) < 5 * math.sqrt(0.0455 / n)
    others = [x.roll(1, 0), x.roll(1, 1), x.roll(n // 2), draw(3, 2), draw(4, 1), draw(3 + (1 << 32), 1)]
    assert all(abs(float((x * other).mean())) < 5 / math.sqrt(n) for other in others)
    assert torch.equal(x, draw(3, 1))


def test_projections_differ_by_parameter_draw_and_seed_and_by_nothing_else() -> None:
    def projections(**options: Any) -> list[list[Tensor]]:
        weights = [nn.Parameter(torch.zeros(6, 4)) for _ in range(2)]
        group = {"params": weights, "rank": 3, "update_proj_gap": 2}
        optimizer = optimizers.APOLLOAdamW([group], **options)
        rules = [optimizer.managed[w].rule for w in weights]
        return [[r.projection(torch.ones(6, 4), {}, r.scalars(step, 1.0)) for step in (1, 2, 3)] for r in rules]

    ours = projections()
    assert torch.equal(ours[0][0], ours[0][1]) and ours[0][0].shape == (3, 4)
    different = [ours[0][0], ours[0][2], ours[1][0], projections(rounding_seed=1)[0][0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    again = projections()
    assert all(torch.equal(a, b) for i in (0, 1) for a, b in zip(ours[i], again[i], strict=True))


def test_a_random_projection_keeps_nothing() -> None:
    """Two moments of (longer side, rank) and one norm."""
    weight = nn.Parameter(torch.zeros(12, 8))
    optimizer = optimizers.APOLLOAdamW([{"params": [weight], "rank": 3}])
    assert {k: tuple(v.shape) for k, v in optimizer.state[weight].items() if k != "step"} == {
        "exp_avg": (12, 3),
        "exp_avg_sq": (12, 3),
        "norm": (1,),
    }
