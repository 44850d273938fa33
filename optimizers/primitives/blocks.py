"""Blocks of a tensor that share one statistic."""

from __future__ import annotations

import math

from torch import Tensor


def largest_divisor(numel: int, limit: int) -> int:
    """The largest divisor of numel that is not above limit (at least 1)."""
    limit = max(1, min(limit, numel))
    best = 1
    for d in range(1, math.isqrt(numel) + 1):
        if numel % d == 0:
            if d <= limit:
                best = max(best, d)
            if numel // d <= limit:
                best = max(best, numel // d)
    return best


def kept_dim_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the statistic of a matrix that keeps its longer side: (m, 1) when m >= n, else (1, n)."""
    return (shape[0], 1) if shape[0] >= shape[1] else (1, shape[1])


def subset_sum(square: Tensor, statistic: Tensor) -> Tensor:
    """Sums of a matrix over the side along which `statistic` has size 1."""
    return square.sum(dim=1 if statistic.shape[1] == 1 else 0, keepdim=True)
