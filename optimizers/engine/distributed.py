"""Replicated parameters: what travels between processes, once an update.

The gradient of a projected method travels projected (r x n instead of m x n; exact, because projection is linear),
except where the whole gradient is needed: before a refresh, and for bases that learn at every update. A refreshed
basis is computed by one process, its owner, and broadcast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from . import sharding

if TYPE_CHECKING:
    from .optimizer import EngineOptimizer
    from .parameter import ManagedParameter

BUCKET_ELEMENTS = 25_000_000
"""Elements summed in one message: 100 MB of float32."""


class Exchange(Protocol):
    """How gradients of replicated parameters are summed."""

    parts: int
    bytes_sent: int

    def sum(self, tensor: Tensor) -> Tensor: ...

    def owner(self, index: int) -> bool: ...

    def broadcast(self, tensor: Tensor, index: int) -> None: ...


class Alone:
    """One process: nothing travels."""

    parts = 1
    bytes_sent = 0

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def owner(self, index: int) -> bool:
        return True

    def broadcast(self, tensor: Tensor, index: int) -> None:
        return None


class Replicated:
    """Copies of the parameters on every process of a group; counts the bytes that each process contributes.

    timed: entered around every message, for a loop that wants to know how long they take.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.parts = dist.get_world_size(group)
        self.part = dist.get_rank(group)
        self.bytes_sent = 0
        self.timed: Callable[[], AbstractContextManager[object]] = nullcontext

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the group, in place; tensors that are sharded were summed in the backward pass."""
        if not sharding.is_sharded(tensor):
            with self.timed():
                dist.all_reduce(tensor, group=self.group)
            self.bytes_sent += tensor.numel() * tensor.element_size()
        return tensor

    def owner(self, index: int) -> bool:
        """Whether this process computes the basis of parameter `index`."""
        return index % self.parts == self.part

    def broadcast(self, tensor: Tensor, index: int) -> None:
        """Send the owner's tensor to all."""
        with self.timed():
            dist.broadcast(tensor, group=self.group, group_src=index % self.parts)
        if self.owner(index):
            self.bytes_sent += tensor.numel() * tensor.element_size()


def replicate(optimizer: torch.optim.Optimizer, group: Any = None) -> None:
    """Tell an optimizer that the processes of a group hold copies of its parameters.

    `synchronize` then sums gradients between them, and per-layer updates sum inside the backward pass. Its attribute
    `exchange` counts what was sent.
    """
    optimizer.exchange = Replicated(group)  # type: ignore[attr-defined]


@torch.no_grad()
def synchronize(optimizer: torch.optim.Optimizer, group: Any = None, projected: bool = True) -> int:
    """Sum this update's gradients over the processes; for any torch optimizer, once an update, before `step`.

    projected: let gradients of projected methods travel projected. They are then no longer in `.grad`, so a global norm
    of the whole gradient cannot be taken: pass False when clipping.
    Returns the bytes that this process contributed.
    """
    exchange = getattr(optimizer, "exchange", None)
    if not isinstance(exchange, Replicated):
        exchange = Replicated(group)
    before = exchange.bytes_sent
    params = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    managed = getattr(optimizer, "managed", {})
    compressed = [p for p in params if projected and p in managed and travels_compressed(managed[p])]
    for param in compressed:
        optimizer.pending[param] = managed[param].compress(param.grad)  # type: ignore[attr-defined]
        param.grad = None
    travelling = [getattr(optimizer, "pending", {}).get(p, p.grad) for p in params]
    _sum_in_buckets([t for t in travelling if not sharding.is_sharded(t)], exchange)
    for param in params:
        if param.grad is not None and param in managed and managed[param].due():
            refresh(managed[param], param.grad, exchange)
    return exchange.bytes_sent - before


def travels_compressed(managed: ManagedParameter) -> bool:
    """Whether the next update of a replicated parameter can do without the whole gradient."""
    rule = managed.rule
    return rule.compresses and not rule.learns and managed.placement.mode == "whole" and not managed.due()


def reduce_gradient(optimizer: EngineOptimizer, param: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Sum one parameter's gradient over the processes: (whole, None), or (None, compressed) where that is enough."""
    managed, exchange = optimizer.managed[param], optimizer.exchange
    if exchange.parts == 1:
        return grad, None
    managed.check_group()
    if travels_compressed(managed):
        return None, exchange.sum(managed.compress(grad))
    exchange.sum(grad)
    if managed.due():
        refresh(managed, grad, exchange)
    return grad, None


def refresh(managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
    """Refresh a due parameter from the summed gradient: computed by its owner, broadcast to all."""
    if sharding.is_sharded(managed.param):
        if grad is not None:
            managed.refresh_if_due(grad)
        # The others note it too: whether a refresh is due must be the same everywhere, for the next micro-batch.
        agreed = managed.step > 0 or sharding.agree(bool(managed.settled), managed.placement)
        managed.note_refresh(agreed)
        return
    assert grad is not None
    changed = torch.tensor([int(exchange.owner(managed.index) and managed.refresh(grad))], device=grad.device)
    exchange.broadcast(changed, managed.index)
    if changed.item() and exchange.parts > 1:
        for tensor in managed.stored().values():
            exchange.broadcast(tensor, managed.index)
    managed.note_refresh(bool(changed.item()))


def _sum_in_buckets(tensors: list[Tensor], exchange: Exchange) -> None:
    buckets: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = buckets.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= BUCKET_ELEMENTS:
            _sum_bucket(buckets.pop(tensor.dtype), exchange)
    for bucket in buckets.values():
        _sum_bucket(bucket, exchange)


def _sum_bucket(tensors: list[Tensor], exchange: Exchange) -> None:
    if len(tensors) == 1 and tensors[0].is_contiguous():
        exchange.sum(tensors[0])
        return
    flat = exchange.sum(torch.cat([t.flatten() for t in tensors]))
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
