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

    def is_me(self, owner: int) -> bool: ...

    def broadcast(self, tensor: Tensor, owner: int) -> None: ...

    def any(self, flags: list[bool]) -> list[bool]: ...


class Alone:
    """One process: nothing travels."""

    parts = 1
    bytes_sent = 0

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def is_me(self, owner: int) -> bool:
        return True

    def broadcast(self, tensor: Tensor, owner: int) -> None:
        return None

    def any(self, flags: list[bool]) -> list[bool]:
        return flags


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

    def is_me(self, owner: int) -> bool:
        """Whether this process has that number in the group."""
        return owner == self.part

    def broadcast(self, tensor: Tensor, owner: int) -> None:
        """Send the owner's tensor to all."""
        with self.timed():
            dist.broadcast(tensor, group=self.group, group_src=owner)
        if self.is_me(owner):
            self.bytes_sent += tensor.numel() * tensor.element_size()

    def any(self, flags: list[bool]) -> list[bool]:
        """Each flag, whether it is set on any process; over the CPU where the group can, so no device waits."""
        on_cpu = "cpu" in str(dist.get_backend_config(self.group))
        numbers = torch.tensor(flags, dtype=torch.int32, device="cpu" if on_cpu else torch.cuda.current_device())
        with self.timed():
            dist.all_reduce(numbers, group=self.group)
        return [count > 0 for count in numbers.tolist()]


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
    managed = getattr(optimizer, "managed", {})
    params = _with_gradient(optimizer, exchange)
    compressed = [p for p in params if projected and p in managed and travels_compressed(managed[p])]
    for param in compressed:
        assert param.grad is not None
        optimizer.pending[param] = managed[param].compress(param.grad)  # type: ignore[attr-defined]
        param.grad = None
    travelling = [getattr(optimizer, "pending", {}).get(p, p.grad) for p in params]
    _sum_in_buckets([t for t in travelling if t is not None and not sharding.is_sharded(t)], exchange)
    refresh_replicas(
        [managed[p] for p in params if p.grad is not None and p in managed and managed[p].refresh_due()], exchange
    )
    return exchange.bytes_sent - before


def _with_gradient(optimizer: torch.optim.Optimizer, exchange: Exchange) -> list[Tensor]:
    """The parameters that have a gradient on any process; where this one has none, it takes part with zeros."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for param in params:
        if param.grad is not None and param.grad.is_sparse:
            raise ValueError(
                f"parameter of shape {tuple(param.shape)}: sparse gradients are not summed; use sparse=False in the "
                "embedding"
            )
    chosen = []
    for param, exists in zip(params, exchange.any([p.grad is not None for p in params]), strict=True):
        if exists and param.grad is None:
            param.grad = torch.zeros_like(param)
        if exists:
            chosen.append(param)
    return chosen


def travels_compressed(managed: ManagedParameter) -> bool:
    """Whether the next update of a replicated parameter can do without the whole gradient."""
    rule = managed.rule
    return (
        rule.compresses
        and not rule.follows_gradient
        and managed.placement.mode == "whole"
        and not managed.refresh_due()
    )


def reduce_gradient(optimizer: EngineOptimizer, param: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Sum one parameter's gradient over the processes: (whole, None), or (None, compressed) where that is enough."""
    managed, exchange = optimizer.managed[param], optimizer.exchange
    if exchange.parts == 1:
        return grad, None
    managed.check_group()
    if travels_compressed(managed):
        return None, exchange.sum(managed.compress(grad))
    exchange.sum(grad)
    if managed.refresh_due():
        refresh(managed, grad, exchange)
    return grad, None


def refresh(managed: ManagedParameter, grad: Tensor | None, exchange: Exchange) -> None:
    """Refresh a due parameter from the summed gradient: computed by its owner, known to all."""
    if sharding.is_sharded(managed.param):
        if grad is not None:
            managed.refresh_if_due(grad)
        # The others note it too: whether a refresh is due must be the same everywhere, for the next micro-batch.
        sharding.agree_on_refreshes([managed])
        return
    assert grad is not None
    owner = managed.index % exchange.parts
    changed = exchange.is_me(owner) and managed.refresh(grad)
    _share_refreshes([(managed, owner, changed)], exchange)


def refresh_replicas(due: list[ManagedParameter], exchange: Exchange) -> None:
    """Refresh from the summed gradients in `.grad`: every owner computes all that it has to, then all is sent."""
    owners = sharding.deal([m.param.shape for m in due], exchange.parts)
    tried = []
    for managed, owner in zip(due, owners, strict=True):
        assert managed.param.grad is not None
        tried.append((managed, owner, exchange.is_me(owner) and managed.refresh(managed.param.grad)))
    _share_refreshes(tried, exchange)


def _share_refreshes(tried: list[tuple[ManagedParameter, int, bool]], exchange: Exchange) -> None:
    if not tried:
        return
    for (managed, owner, _), changed in zip(tried, exchange.any([c for _, _, c in tried]), strict=True):
        if changed and exchange.parts > 1:
            for tensor in managed.stored().values():
                exchange.broadcast(tensor, owner)
        managed.note_refresh(changed)


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
