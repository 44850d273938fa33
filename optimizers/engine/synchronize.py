"""Replicated parameters: what travels between processes, once per update.

The gradient of a projected method travels projected (r x n instead of m x n; exact, because projection is linear),
except where the whole gradient is needed: before a refresh, and for bases that learn at every update. A refreshed
basis is computed by one process, its owner, and broadcast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import sharding
from .exchange import Exchange

if TYPE_CHECKING:
    from .optimizer import EngineOptimizer
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
    _sum_in_buckets([g for g in gradients if not sharding.is_sharded(g)], exchange)


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
        elif not sharding.is_sharded(param.grad):
            travelling.append(param.grad)
    _sum_in_buckets(travelling, exchange)
    refresh_replicas([managed[p] for p in params if p.grad is not None and managed[p].refresh_due()], exchange)


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
