"""Stochastic rounding: right on average, exact numbers stay, shards draw what the whole would."""

import pytest
import torch

from optimizers.engine import precision

WAYS = {"cpu": precision._round_on_cpu, "bits": precision._round_bits}


def values() -> torch.Tensor:
    """(64, 48) numbers of many sizes and both signs, a power of two and the next float32 numbers around it."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, 48, generator=generator) * 10.0 ** torch.randint(-12, 12, (64, 1), generator=generator)
    numbers[0, :4] = torch.tensor([1.0, 1 - 2.0**-24, 1 + 2.0**-23, -(1 + 2.0**-9)])
    return numbers


@pytest.mark.parametrize("way", WAYS)
def test_mean_is_the_value_and_results_are_its_neighbours(way: str) -> None:
    """4,000 roundings: the mean is off by at most 5 standard errors of half a spacing."""
    exact, draws = values(), 4000
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    total = torch.zeros(exact.shape, dtype=torch.float64)
    for draw in range(draws):
        rounded = WAYS[way](exact, precision._noise(exact, 977 * draw, 0, draw % 3)).float()
        assert ((rounded - exact).abs() < spacing).all()
        total += rounded
    error = (total / draws - exact.double()).abs() / spacing
    assert error.max().item() <= 5 * 0.5 / draws**0.5


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_numbers_and_non_finite_values_stay(way: str) -> None:
    special = torch.tensor([0.0, 1.0, -1.0, 2.0**-40, 3.0e38, float("inf"), -float("inf"), float("nan")])
    exact = torch.cat([special.repeat(600, 1), torch.randn(600, 40).bfloat16().float()], dim=1).bfloat16().float()
    for draw in range(50):
        rounded = WAYS[way](exact, precision._noise(exact, draw, 0, 0)).float()
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0, equal_nan=True)


def test_noise_is_uniform_and_differs_between_draws() -> None:
    like = torch.empty(400, 300)
    first, second = (precision._noise(like, seed, 0, 0) for seed in (1, 2))
    other = precision._noise(like, 1, 0, 1)
    assert first.min() >= 0 and first.max() < 1
    counts = torch.histc(first, 16, 0, 1) / first.numel()
    assert (counts - 1 / 16).abs().max() < 0.01
    for pair in ((first, second), (first, other)):
        assert torch.corrcoef(torch.stack([t.flatten() for t in pair]))[0, 1].abs() < 0.05


@pytest.mark.parametrize("shape", [(8, 6), (8,), (8, 3, 2)])
def test_shards_round_as_the_whole(shape: tuple[int, ...]) -> None:
    whole = torch.randn(shape)
    parts = [precision.round_stochastically(rows, 5, part * len(rows), 2) for part, rows in enumerate(whole.chunk(4))]
    torch.testing.assert_close(torch.cat(parts), precision.round_stochastically(whole, 5, 0, 2), rtol=0, atol=0)


def test_a_larger_table_begins_with_the_smaller() -> None:
    device = torch.device("cpu")
    small, large = precision.tables(device, 10), precision.tables(device, (1 << 16) + 1)
    for a, b in zip(small, large, strict=True):
        assert torch.equal(a, b[: len(a)])
