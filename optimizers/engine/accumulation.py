"""How the gradients of one update's backward passes become its update, where they are freed after each pass.

With several micro-batches an update must not need the full gradient at its end:
- a rule that compresses adds up compressed gradients; its basis is refreshed from the first micro-batch when due, and a
  basis that follows the gradient follows the last one;
- a rule with an accumulator (momentum alone, LDAdam's error) adds the gradients to it;
- any other parameter keeps its gradient until the last micro-batch, and so does one whose accumulator has 8 bits: each
  of many small shares would be rounded away in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from . import precision, synchronize
from .exchange import Exchange
from .parameter import ManagedParameter


class GradientLimit:
    """Takes non-finite gradients as zero and clips each to `max_norm` (0: does not); the device is not waited for."""

    def __init__(self) -> None:
        self.max_norm = 0.0
        self.bad: Tensor | None = None

    def __call__(self, grad: Tensor | None, managed: ManagedParameter, clip: bool = True) -> None:
        """In place, of what a process computes with: the norm is that of all its parts."""
        if grad is None:
            return
        square = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)).square()
        norm = managed.placement.sum(square).sqrt()
        bad = ~torch.isfinite(norm)
        grad.masked_fill_(bad, 0.0)
        self.bad = bad.long() if self.bad is None else self.bad + bad
        if clip and self.max_norm > 0:
            grad.mul_((self.max_norm / (norm + 1e-6)).nan_to_num().clamp(max=1.0))

    def take_count(self) -> int:
        """How many gradients were not finite since the last call; waits for the device."""
        count, self.bad = 0 if self.bad is None else int(self.bad), None
        return count


def adds_to_state(managed: ManagedParameter) -> bool:
    """Whether gradients of micro-batches are added to the state of this parameter."""
    name = managed.rule.accumulator
    return any(name == state and storage != "int8" for state, _, storage in managed.specs)


class Accumulation(ABC):
    """One way of adding up a parameter's gradients; `limit` and the exchange belong to the optimizer."""

    frees = True
    """Whether a gradient is no longer needed after `take`."""

    def __init__(self, limit: GradientLimit) -> None:
        self.limit = limit

    @abstractmethod
    def take(self, managed: ManagedParameter, grad: Tensor, exchange: Exchange, number: int) -> None:
        """Add the gradient of backward pass `number` of this update, counted from 1. A collective where sharded."""

    @abstractmethod
    def finish(self, managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
        """Make the update. grad: what is left in `.grad`. A collective where processes share the parameter."""

    def drop(self, managed: ManagedParameter, exchange: Exchange) -> bool:
        """Forget what was added; False where that cannot be, and the update was made from it."""
        return True


class InGradient(Accumulation):
    """The gradient stays in `.grad` until the last backward pass.

    Where it is compressed anyway, its compressed form is what is clipped: it is all that exists with several
    micro-batches, and all that travels between replicas, so the limit is the same in every layout.
    """

    frees = False

    def take(self, managed: ManagedParameter, grad: Tensor, exchange: Exchange, number: int) -> None:
        return None

    def finish(self, managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
        if grad is None:
            return
        own, compressed = synchronize.arrive(managed, grad, exchange)
        clips_compressed = managed.rule.compresses and self.limit.max_norm > 0
        self.limit(own, managed, clip=not clips_compressed)
        if not managed.refreshes.ready:
            return
        if clips_compressed and own is not None:
            compressed = managed.compress(own)
        self.limit(compressed, managed)
        managed.update(own, compressed)


class Compressed(Accumulation):
    """Compressed gradients are added up."""

    def __init__(self, limit: GradientLimit) -> None:
        super().__init__(limit)
        self.sums: dict[Tensor, Tensor] = {}
        self._last: dict[Tensor, Tensor] = {}

    def take(self, managed: ManagedParameter, grad: Tensor, exchange: Exchange, number: int) -> None:
        own = synchronize.arrive_in_part(managed, grad, exchange)
        if own is None or not managed.refreshes.ready:
            return
        if managed.rule.follows_gradient:
            self._last[managed.param] = own
        part = managed.compress(own)
        self.sums[managed.param] = self.sums[managed.param] + part if managed.param in self.sums else part

    def finish(self, managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
        compressed, followed = self.sums.pop(managed.param, None), self._last.pop(managed.param, None)
        if not managed.refreshes.ready:
            return
        if followed is not None:
            exchange.sum(followed)
            self.limit(followed, managed, clip=False)
        if compressed is not None:
            exchange.sum(compressed)
            self.limit(compressed, managed)
        managed.update(followed, compressed)

    def drop(self, managed: ManagedParameter, exchange: Exchange) -> bool:
        self.sums.pop(managed.param, None)
        self._last.pop(managed.param, None)
        return True


class InState(Accumulation):
    """Gradients are added to the rule's accumulator."""

    def take(self, managed: ManagedParameter, grad: Tensor, exchange: Exchange, number: int) -> None:
        own = managed.placement.assemble(grad)
        self.limit(own, managed, clip=False)
        if own is None:
            return
        values = managed.values()
        managed.rule.accumulate(precision.widened(own), values, number == 1, managed.step == 0, 1.0 / exchange.parts)
        managed.write_state(values, 3 + number, only=managed.rule.accumulator)

    def finish(self, managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
        name, holds = str(managed.rule.accumulator), managed.placement.holds_state
        if holds and exchange.parts > 1:
            values = managed.values()
            exchange.sum(values[name])
            managed.write_state(values, 2, only=name)
        if managed.refresh_due():
            managed.refresh_from(managed.placement.full(managed.values()[name] if holds else None))
        if managed.refreshes.ready:
            managed.update(None)

    def drop(self, managed: ManagedParameter, exchange: Exchange) -> bool:
        self.finish(managed, None, exchange)
        return False
