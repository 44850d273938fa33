"""Replicated parameters: what travels between processes, once per update.

The gradient of a projected method travels projected (r x n instead of m x n; exact, because projection is linear),
except where the full gradient is needed: before a refresh, and for bases that learn at every update. A refreshed
basis is computed by one process, its owner, and broadcast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

import torch
import torch.distributed as dist
from torch import Tensor

from . import placement
from .exchange import Exchange
from .parameter import ManagedParameter

BUCKET_ELEMENTS = 25_000_000
"""Elements summed in one message: 100 MB of float32."""


def with_gradient(params: Iterable[Tensor], exchange: Exchange) -> list[Tensor]:
    """The parameters that have a gradient on any process; where this one has none, it takes part with zeros.

    Raises ValueError for a sparse gradient. A collective.
    """
    params = list(params)
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


def sum_gradients(params: Iterable[Tensor], exchange: Exchange) -> None:
    """Sum gradients over processes; those that are sharded were summed in the backward pass."""
    gradients = [p.grad for p in with_gradient(params, exchange) if p.grad is not None]
    _sum_in_buckets([g for g in gradients if not placement.is_sharded(g)], exchange)


def sum_managed(
    managed: Mapping[Tensor, ManagedParameter],
    pending: MutableMapping[Tensor, Tensor],
    exchange: Exchange,
    projected: bool,
) -> None:
    """Sum the gradients of an engine's parameters, projected where that is enough, and refresh what is due.

    projected: whether gradients may travel projected; they are then taken from `.grad` and put into `pending`.
    """
    params = with_gradient(managed, exchange)
    travelling = []
    for param in params:
        assert param.grad is not None
        if projected and travels_compressed(managed[param]):
            pending[param] = managed[param].compress(param.grad)
            param.grad = None
            travelling.append(pending[param])
        elif not placement.is_sharded(param.grad):
            travelling.append(param.grad)
    _sum_in_buckets(travelling, exchange)
    left = [(managed[p], p.grad) for p in params if p.grad is not None]
    refresh_replicas([(m, grad) for m, grad in left if m.refresh_due()], exchange)


def travels_compressed(managed: ManagedParameter) -> bool:
    """Whether the next update of a replicated parameter can do without the full gradient."""
    rule = managed.rule
    sharded = placement.is_sharded(managed.param)
    return rule.compresses and not rule.follows_gradient and not sharded and not managed.refresh_due()


def arrive(managed: ManagedParameter, grad: Tensor, exchange: Exchange) -> tuple[Tensor | None, Tensor | None]:
    """One parameter's gradient, summed over the processes, what is due refreshed: (what this process computes with,
    None), or (None, its compressed form) where that is enough. A collective."""
    if exchange.parts == 1:
        return managed.assemble(grad), None
    if travels_compressed(managed):
        return None, exchange.sum(managed.compress(grad))
    exchange.sum(grad)
    if managed.refresh_due():
        refresh_replicas([(managed, grad)], exchange, owners=[managed.index % exchange.parts])
    return grad, None


def arrive_in_part(managed: ManagedParameter, grad: Tensor, exchange: Exchange) -> Tensor | None:
    """The gradient of one of several micro-batches, from which what is due is refreshed; summed for that alone."""
    if exchange.parts == 1:
        return managed.assemble(grad)
    if managed.refresh_due():
        summed = exchange.sum(grad.clone())
        refresh_replicas([(managed, summed)], exchange, owners=[managed.index % exchange.parts])
    return grad


def refresh_replicas(
    due: list[tuple[ManagedParameter, Tensor]], exchange: Exchange, owners: list[int] | None = None
) -> None:
    """Refresh from summed gradients: every owner computes all that it has to, then all is sent. A collective."""
    owners = owners or placement.deal([m.param.shape for m, _ in due], exchange.parts)
    tried = [exchange.is_me(own) and m.refresh(grad) for (m, grad), own in zip(due, owners, strict=True)]
    changed = exchange.any(tried) if due else []
    for (managed, _), owner, new in zip(due, owners, changed, strict=True):
        if new and exchange.parts > 1:
            for tensor in managed.stored().values():
                exchange.broadcast(tensor, owner)
        managed.refreshes.note(managed.step + 1, new)


def refresh_owned(parameters: Iterable[ManagedParameter]) -> dict[Tensor, Tensor | None]:
    """Refresh what owners of shards compute: all gradients are gathered first, so that owners work at the same time.

    Returns the full gradients of what was due: with the owner, for the update that follows; elsewhere None. A
    collective.
    """
    owned = [(m, m.param.grad) for m in parameters if m.placement.state_elsewhere]
    due = [(m, grad) for m, grad in owned if grad is not None and m.refresh_due()]
    gathered = {m.param: m.placement.assemble(grad) for m, grad in due}
    tried = [m.try_refresh(gathered[m.param]) for m, _ in due]
    for (managed, _), succeeded in zip(due, _from_owners([m for m, _ in due], tried), strict=True):
        managed.refreshes.note(managed.step + 1, succeeded)
    return gathered


def _from_owners(parameters: list[ManagedParameter], found: list[bool]) -> list[bool]:
    """What the owners of these parameters have found, on every process, in one message for each process group."""
    result = list(found)
    groups: dict[int, list[int]] = {}
    for number, managed in enumerate(parameters):
        groups.setdefault(id(managed.placement.group), []).append(number)
    for numbers in groups.values():
        place = parameters[numbers[0]].placement
        flags = torch.tensor([int(found[n]) for n in numbers], device=place.mesh.device_type)
        dist.all_reduce(flags, group=place.group)
        for number, flag in zip(numbers, flags.tolist(), strict=True):
            result[number] = flag > 0
    return result


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
