"""The metrics of GLUE, computed here: the usual package fetches its code from a hub at run time.

All take arrays of shape (examples,) and return a fraction or a coefficient, not per cent.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating] | NDArray[np.integer]
Metric = Callable[[Array, Array], float]


def accuracy(predicted: Array, true: Array) -> float:
    """Share of equal labels."""
    return float(np.mean(predicted == true))


def f1(predicted: Array, true: Array) -> float:
    """F1 of label 1; 0 where no example is, or is predicted to be, of label 1."""
    hits = float(np.sum((predicted == 1) & (true == 1)))
    total = float(np.sum(predicted == 1) + np.sum(true == 1))
    return 2.0 * hits / total if total else 0.0


def matthews_correlation(predicted: Array, true: Array) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 where one side is constant."""
    labels = np.union1d(predicted, true)
    confusion = np.array([[np.sum((true == t) & (predicted == p)) for p in labels] for t in labels], dtype=np.float64)
    count, correct = confusion.sum(), np.trace(confusion)
    per_true, per_predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    spread = (count**2 - per_true @ per_true) * (count**2 - per_predicted @ per_predicted)
    return float((correct * count - per_true @ per_predicted) / np.sqrt(spread)) if spread else 0.0


def pearson(predicted: Array, true: Array) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(np.corrcoef(predicted.astype(np.float64), true.astype(np.float64))[0, 1])


def spearman(predicted: Array, true: Array) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""
    return pearson(_ranks(predicted), _ranks(true))


def _ranks(values: Array) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[group]


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def scores(names: Sequence[str], predicted: Array, true: Array) -> dict[str, float]:
    """Several metrics by name."""
    return {name: METRICS[name](predicted, true) for name in names}
