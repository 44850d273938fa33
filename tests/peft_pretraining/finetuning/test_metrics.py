"""GLUE's metrics against scipy and against their definitions in whole numbers."""

import numpy as np
import pytest

from peft_pretraining.finetuning import metrics

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, 6, 40), rng.normal(size=40)
    assert metrics.pearson(two, one) == pytest.approx(scipy_stats.pearsonr(two, one).statistic, abs=1e-12)
    assert metrics.spearman(two, one) == pytest.approx(scipy_stats.spearmanr(two, one).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_are_their_definitions(seed: int) -> None:
    """Of two classes, Matthews' correlation is Pearson's (the phi coefficient), and F1 comes from counts."""
    rng = np.random.default_rng(seed)
    predicted, true = rng.integers(0, 2, 30), rng.integers(0, 2, 30)
    hits = sum(1 for p, t in zip(predicted, true, strict=True) if p == t == 1)
    precision, recall = hits / predicted.sum(), hits / true.sum()
    assert metrics.f1(predicted, true) == pytest.approx(2 * precision * recall / (precision + recall))
    phi = scipy_stats.pearsonr(predicted, true).statistic
    assert metrics.matthews_correlation(predicted, true) == pytest.approx(phi, abs=1e-12)
    assert metrics.accuracy(predicted, true) == sum(predicted == true) / 30


def test_three_classes() -> None:
    """R_K of a confusion matrix worked out by hand: correct 4 of 6, (6*4 - 12) / sqrt((36 - 12) (36 - 14))."""
    true, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 2, 1])
    assert metrics.matthews_correlation(predicted, true) == pytest.approx(12 / np.sqrt(24 * 22))


def test_constant_answers_score_nothing() -> None:
    ones, mixed = np.ones(4, dtype=int), np.array([0, 1, 0, 1])
    assert metrics.matthews_correlation(ones, mixed) == metrics.pearson(ones, mixed) == 0.0
    assert metrics.f1(np.zeros(4, dtype=int), np.zeros(4, dtype=int)) == 0.0
