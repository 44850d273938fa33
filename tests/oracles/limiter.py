"""The norm-growth limiter of Fira and APOLLO (arXiv 2410.01623, section 4.3)."""

from __future__ import annotations

from torch import Tensor


class GrowthLimiter:
    """At most 1% more norm than after the last update; the first norm that is not zero is taken as it is."""

    def __init__(self) -> None:
        self.last: float | None = None

    def limit(self, update: Tensor) -> Tensor:
        norm = update.pow(2).sum().sqrt().item()
        if norm == 0.0:
            return update
        factor = 1.0 if self.last is None else max(norm / (self.last + 1e-8), 1.01) / 1.01
        self.last = norm / factor
        return update / factor
