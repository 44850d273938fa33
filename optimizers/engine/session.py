"""What a training loop may ask of an optimizer, the same for the engine's and for any other of torch.

    updates = session(optimizer, max_norm=1.0, replicas=True)
    for batches in data:
        updates.begin(len(batches))
        for batch in batches:
            loss(batch).backward()
        updates.synchronize()
        updates.step()

docs/own_loop.md shows the parts of it that a loop needs, step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import synchronize as synchronization
from .exchange import Alone, Exchange, Replicas
from .optimizer import EngineOptimizer


class Session:
    """The updates of any torch optimizer, one after another. `session` makes one.

    optimizer: a torch.optim.Optimizer. exchange: how gradients travel between replicas.
    max_norm: for loops that clip; see `session`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, exchange: Exchange, max_norm: float = 0.0) -> None:
        self.optimizer, self.exchange, self.max_norm = optimizer, exchange, max_norm

    @property
    def in_backward(self) -> bool:
        """Whether each parameter is updated, and its gradient freed, inside the backward pass."""
        return False

    @property
    def replicated(self) -> bool:
        """Whether other processes hold copies of the parameters."""
        return self.exchange.parts > 1

    def begin(self, micro_batches: int = 1) -> None:
        """Before the first backward pass of an update of this many. Raises ValueError where that cannot be."""

    def synchronize(self) -> None:
        """After the last backward pass: sum the gradients over the processes. A collective."""
        if self.replicated:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            synchronization.sum_gradients(params, self.exchange)

    def gradients(self) -> list[Tensor]:
        """What `step` will use, for norms and clipping; changes in place count. Empty where updates are made in the
        backward pass. Sharded gradients are DTensors; those that travelled projected are projections."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [p.grad for p in params if p.grad is not None]

    def step(self) -> None:
        """Make the update, and drop the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def abandon(self) -> None:
        """Drop the gradients without an update, as far as it has not been made in the backward pass."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def bytes_sent(self) -> int:
        """Bytes of gradients and bases that this process has contributed to messages so far."""
        return self.exchange.bytes_sent

    @property
    def warnings(self) -> Counter[str]:
        """What the optimizer tolerated instead of raising an error, and how often."""
        return Counter()

    def time_messages(self, timer: Callable[[], AbstractContextManager[object]]) -> None:
        """Enter what `timer` gives around every message between processes."""
        self.exchange.timed = timer

    def report_progress(self, sign: Callable[[], None]) -> None:
        """Call `sign` after each long part of an update, such as a basis that was computed."""

    def routing_table(self) -> str | None:
        """Which parameter is updated how, a line for each kind; None where the optimizer does not say."""
        return None

    def hides_gradients(self) -> bool:
        """Whether some whole gradients never exist on this process, because they travel projected."""
        return False


class EngineSession(Session):
    """The updates of an engine's optimizer."""

    optimizer: EngineOptimizer[Any]

    @property
    def in_backward(self) -> bool:
        return self.optimizer.per_layer

    def begin(self, micro_batches: int = 1) -> None:
        if self.in_backward:
            self.optimizer.begin_update(micro_batches, self.max_norm)

    def synchronize(self) -> None:
        if self.replicated and not self.in_backward:
            # A gradient that travels projected is never whole, so clipping by its norm rules that out.
            managed, pending = self.optimizer.managed, self.optimizer.pending
            synchronization.sum_managed(managed, pending, self.exchange, projected=self.max_norm == 0)

    def gradients(self) -> list[Tensor]:
        return [] if self.in_backward else [*self.optimizer.pending.values(), *super().gradients()]

    def abandon(self) -> None:
        if self.in_backward:
            self.optimizer.abandon_update()
        else:
            super().abandon()

    @property
    def warnings(self) -> Counter[str]:
        return self.optimizer.warnings

    def report_progress(self, sign: Callable[[], None]) -> None:
        self.optimizer.shared.progress = sign

    def routing_table(self) -> str | None:
        return self.optimizer.routing_table()

    def hides_gradients(self) -> bool:
        travel = self.replicated and (self.in_backward or self.max_norm == 0)
        rules = [managed.rule for managed in self.optimizer.managed.values()]
        return travel and any(rule.compresses and not rule.follows_gradient for rule in rules)


def session(
    optimizer: torch.optim.Optimizer,
    *,
    max_norm: float = 0.0,
    micro_batches: int = 1,
    replicas: bool = False,
    group: Any = None,
    checks_gradients: bool = False,
) -> Session:
    """The session of an optimizer: what a loop calls for every update.

    max_norm: above 0, a loop clips. Updates inside the backward pass then limit the norm of each parameter's gradient;
    elsewhere the loop limits what `gradients` gives, which is kept whole for it. micro_batches: backward passes of the
    largest update, so that a method that cannot accumulate them says so now. replicas: the processes of `group` (a
    torch.distributed process group, all by default) hold copies of the parameters, and losses are divided so that
    gradients are to be summed. checks_gradients: the loop makes no update from a gradient that is not finite, so the
    optimizer need not look, which spares the device a wait.

    Raises ValueError where the optimizer cannot accumulate that many micro-batches, or cannot clip them.
    """
    if replicas:
        replicate(optimizer, group)
    if not isinstance(optimizer, EngineOptimizer):
        return Session(optimizer, Replicas(group) if replicas else Alone(), max_norm)
    optimizer.trusts_gradients = checks_gradients
    made = EngineSession(optimizer, optimizer.exchange, max_norm)
    made.begin(micro_batches)
    return made


def replicate(optimizer: torch.optim.Optimizer, group: Any = None) -> None:
    """Tell an optimizer that the processes of a group hold copies of its parameters.

    `synchronize` then sums gradients between them, and per-layer updates sum inside the backward pass. Optimizers that
    are not the engine's need no telling.
    """
    if isinstance(optimizer, EngineOptimizer):
        optimizer.exchange = Replicas(group)


@torch.no_grad()
def synchronize(optimizer: torch.optim.Optimizer, group: Any = None, projected: bool = True) -> int:
    """Sum this update's gradients over the processes; for any torch optimizer, once per update, before `step`.

    projected: let gradients of projected methods travel projected. They are then no longer in `.grad`, so a global norm
    of the whole gradient cannot be taken: pass False when clipping. A parameter without a gradient on this process
    counts as zero where others have one.
    Returns the bytes that this process contributed.
    """
    exchange: Exchange = Alone()
    if isinstance(optimizer, EngineOptimizer):
        exchange = optimizer.exchange
    if isinstance(exchange, Alone):
        exchange = Replicas(group)
    before = exchange.bytes_sent
    if isinstance(optimizer, EngineOptimizer):
        synchronization.sum_managed(optimizer.managed, optimizer.pending, exchange, projected)
    else:
        params = [p for parameters in optimizer.param_groups for p in parameters["params"]]
        synchronization.sum_gradients(params, exchange)
    return exchange.bytes_sent - before
