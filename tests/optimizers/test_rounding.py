"""Stochastic rounding: right on average, exact numbers stay, shards draw what the whole would."""

import pytest
import torch
from torch import nn

from optimizers.baselines import EngineSGD
from optimizers.engine import precision
from optimizers.engine.placement import first_row

WAYS = {"cpu": precision._power_on_cpu, "bits": precision._power}
"""How the power of two below a number is found: in float arithmetic on a CPU, from its bits elsewhere."""


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(precision, "_power_on_cpu", WAYS[request.param])
    return request.param


def values() -> torch.Tensor:
    """(64, 48) numbers of many sizes and both signs, a power of two and the next float32 numbers around it."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, 48, generator=generator) * 10.0 ** torch.randint(-12, 12, (64, 1), generator=generator)
    numbers[0, :4] = torch.tensor([1.0, 1 - 2.0**-24, 1 + 2.0**-23, -(1 + 2.0**-9)])
    return numbers


def test_mean_is_the_value_and_results_are_its_neighbours() -> None:
    """4,000 roundings: the mean is off by at most 5 standard errors of half a spacing."""
    exact, draws = values(), 4000
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    total = torch.zeros(exact.shape, dtype=torch.float64)
    for draw in range(draws):
        rounded = precision.round_stochastically(exact, 977 * draw, 0, draw % 3).float()
        assert ((rounded - exact).abs() < spacing).all()
        total += rounded
    error = (total / draws - exact.double()).abs() / spacing
    assert error.max().item() <= 5 * 0.5 / draws**0.5


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-5, 1e-6])
def test_every_fraction_of_a_spacing_moves_a_number_as_far(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value that the noise takes, on a grid of 2^-22: the mean of all roundings is right to 1e-6 of a spacing."""
    grid = torch.arange(-(2**21), 2**21, dtype=torch.float64).add(0.5).mul(2.0**10).float().view(2**11, 2**11)
    monkeypatch.setattr(precision, "_noise", lambda *_: grid)
    for value in (1.0, -1.3125, 1.9921875):
        weight, step = torch.full(grid.shape, value), torch.full(grid.shape, share * 2.0**-7)
        moved = weight - step
        rounded = precision.round_stochastically(moved, 0, rest=(weight - moved) - step)
        mean = (rounded.double() - value).mean() / 2.0**-7
        assert abs(float(mean) + share) < 1e-6


def test_a_tiny_step_moves_bfloat16_weights_as_far_as_it_should() -> None:
    """Steps of 3e-5 of a spacing: a million weights, 60 updates; 5 standard errors are 12% of the way."""
    weight = nn.Parameter(torch.full((1024, 1024), 1.5, dtype=torch.bfloat16))
    optimizer = EngineSGD([weight], lr=3e-5 * 2.0**-7, momentum=0.0)
    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = (1.5 - weight.detach().double()).mean() / 2.0**-7
    assert float(moved) == pytest.approx(60 * 3e-5, rel=5 / (60 * 3e-5 * weight.numel()) ** 0.5)


def test_bfloat16_numbers_and_non_finite_values_stay() -> None:
    special = torch.tensor([0.0, 1.0, -1.0, 2.0**-40, 3.0e38, float("inf"), -float("inf"), float("nan")])
    exact = torch.cat([special.repeat(600, 1), torch.randn(600, 40).bfloat16().float()], dim=1).bfloat16().float()
    for draw in range(50):
        rounded = precision.round_stochastically(exact, draw).float()
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0, equal_nan=True)


def _noise(rows: int, columns: int, seed: int, salt: int = 0) -> torch.Tensor:
    """Noise in [-0.5, 0.5]."""
    return precision._noise(torch.empty(rows, columns), seed, 0, salt) * 2.0**-32


def test_noise_is_uniform_and_differs_between_draws() -> None:
    first, second, other = _noise(400, 300, 1), _noise(400, 300, 2), _noise(400, 300, 1, 1)
    assert first.min() >= -0.5 and first.max() <= 0.5
    counts = torch.histc(first, 16, -0.5, 0.5) / first.numel()
    assert (counts - 1 / 16).abs().max() < 0.01
    for pair in ((first, second), (first, other)):
        assert torch.corrcoef(torch.stack([t.flatten() for t in pair]))[0, 1].abs() < 0.05


def test_noise_has_the_spectrum_of_independent_noise() -> None:
    """The share of its energy in the 32 largest of 512 directions: 21%, as for numbers of torch's own generator."""
    independent = torch.rand(512, 512, generator=torch.Generator().manual_seed(0)) - 0.5

    def share(noise: torch.Tensor) -> float:
        squares = torch.linalg.svdvals(noise).square()
        return float(squares[:32].sum() / squares.sum())

    assert share(_noise(512, 512, 11)) == pytest.approx(share(independent), rel=0.02)


@pytest.mark.parametrize("dim", [0, 1])
def test_no_two_rows_or_columns_share_their_noise_for_ever(dim: int) -> None:
    """Correlations over 400 updates and 96 columns: at most 5.5 standard errors, for all of 4,560 pairs."""
    draws = torch.stack([_noise(96, 96, seed) for seed in range(400)], dim=2)
    lines = draws.transpose(0, dim).reshape(96, -1)
    correlations = torch.corrcoef(lines) - torch.eye(96)
    assert float(correlations.abs().max()) < 5.5 / lines.shape[1] ** 0.5


def test_all_rows_of_a_vocabulary_have_numbers_of_their_own() -> None:
    for numbers in precision.tables(torch.device("cpu"), 1 << 17):
        assert (numbers & 0x3FFFFFFF).unique().numel() == len(numbers) == 1 << 17


@pytest.mark.parametrize("shape", [(8, 6), (8,), (8, 3, 2), (11, 6), (6, 5), (9,)])
def test_shards_round_as_the_whole(shape: tuple[int, ...]) -> None:
    """Of any number of rows: the last shard may have fewer than the others."""
    whole = torch.randn(shape)
    parts = [
        precision.round_stochastically(rows, 5, first_row(part, 4, torch.Size(shape)), 2)
        for part, rows in enumerate(whole.chunk(4))
    ]
    torch.testing.assert_close(torch.cat(parts), precision.round_stochastically(whole, 5, 0, 2), rtol=0, atol=0)


def test_a_larger_table_begins_with_the_smaller() -> None:
    device = torch.device("cpu")
    small, large = precision.tables(device, 10), precision.tables(device, (1 << 16) + 1)
    for a, b in zip(small, large, strict=True):
        assert torch.equal(a, b[: len(a)])
