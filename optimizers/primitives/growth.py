"""The norm-growth limiter of Fira (arXiv 2410.01623), which APOLLO (arXiv 2412.05270) uses too."""

from __future__ import annotations

import torch
from torch import Tensor

GROWTH = 1.01
"""Most by which the norm may grow from one update to the next."""
EPS = 1e-8


def limit_growth(update: Tensor, norm: Tensor) -> Tensor:
    """The update, shrunk where its Frobenius norm exceeds 1.01 times the last one; `norm` (1,) is kept in place.

    A norm that is zero or not finite is not remembered. As published, a matrix that once sees a gradient of zeros would
    need over a thousand updates to grow back to its size: the limit is relative to the last norm.
    """
    size = torch.linalg.vector_norm(update)
    excess = torch.where(norm > 0, torch.clamp(size / (norm + EPS), min=GROWTH) / GROWTH, 1.0)
    kept = size / excess
    norm.copy_(torch.where((kept > 0) & torch.isfinite(kept), kept, norm))
    return update / excess
