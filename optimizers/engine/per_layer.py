"""Updates inside the backward pass: a parameter is updated as soon as its gradient exists, which is then freed.

With several micro-batches an update must not need the whole gradient at its end:
- a rule that compresses adds up compressed gradients; its basis is refreshed from the first micro-batch when due, and a
  basis that learns at every update learns from the last one;
- a rule with an accumulator (momentum alone, LDAdam's error) adds the gradients to it;
- the unprojected parameters of such a method keep an ordinary gradient until the last micro-batch;
- any other method refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import distributed, sharding

if TYPE_CHECKING:
    from .optimizer import EngineOptimizer
    from .parameter import ManagedParameter


class PerLayerUpdates:
    """The hooks of one optimizer, and what they have collected of the update under way."""

    def __init__(self, optimizer: EngineOptimizer) -> None:
        self.optimizer = optimizer
        self.micro_batches = 1
        self.max_norm = 0.0
        self.arrived: dict[Tensor, int] = {}
        self.sums: dict[Tensor, Tensor] = {}
        self.bad_gradients: Tensor | None = None

    def watch(self, param: Tensor) -> None:
        """Update this parameter from its gradient hook on."""
        if param.requires_grad and not param.is_meta:
            param.register_post_accumulate_grad_hook(self._on_gradient)

    def begin(self, micro_batches: int, max_norm: float) -> None:
        """Open an update of this many backward passes."""
        if micro_batches > 1 and not self.accumulates():
            raise ValueError(
                f"{type(self.optimizer).__name__}: per_layer frees each gradient after its micro-batch, and this "
                f"method needs the sum over {micro_batches}; use one micro-batch an update (a larger batch_size), a "
                "projected or momentum-only method, or leave out per_layer"
            )
        if micro_batches > 1 and max_norm > 0 and any(m.rule.accumulator for m in self.optimizer.managed.values()):
            raise ValueError(
                f"{type(self.optimizer).__name__}: per_layer adds each of {micro_batches} gradients to the state, so "
                "the norm of their sum cannot be limited; use one micro-batch an update, or no clipping"
            )
        self.micro_batches, self.max_norm = micro_batches, max_norm
        self.arrived.clear()

    def accumulates(self) -> bool:
        """Whether the method can add up gradients without keeping them."""
        rules = [m.rule for m in self.optimizer.managed.values()]
        return any(rule.compresses or rule.accumulator for rule in rules)

    def close(self) -> None:
        """End the update: parameters that missed micro-batches are updated with what came."""
        for param, count in list(self.arrived.items()):
            if count < self.micro_batches:
                self._finish(param, None)
                if param.grad is not None:
                    self._update(param, param.grad)
                    param.grad = None
        self._forget()

    def abandon(self) -> None:
        """End an update that must not be made: what was collected is dropped. Gradients that are in an accumulator
        already cannot be taken out; such parameters are updated with what came."""
        for param in list(self.arrived):
            if self.optimizer.managed[param].rule.accumulator:
                self._finish(param, None)
                self.optimizer.warnings["parameters updated from a part of the micro-batches"] += 1
            param.grad = None
        self._forget()

    def _forget(self) -> None:
        self.arrived.clear()
        self.sums.clear()
        if self.bad_gradients is not None and (count := int(self.bad_gradients)):
            self.optimizer.warnings["non-finite gradients of single parameters, taken as zero"] += count
        self.bad_gradients = None

    @torch.no_grad()
    def _on_gradient(self, param: Tensor) -> None:
        managed, grad = self.optimizer.managed[param], param.grad
        assert grad is not None
        managed.check_group()
        opening = param not in self.arrived
        count = self.arrived[param] = self.arrived.get(param, 0) + 1
        last = count >= self.micro_batches
        if self.micro_batches == 1:
            self._update(param, grad)
        elif managed.rule.accumulator:
            self._add_to_state(managed, grad, opening)
        elif managed.rule.compresses:
            self._add_compressed(managed, grad)
        elif not last:
            return
        else:
            self._update(param, grad)
        if last and self.micro_batches > 1:
            self._finish(param, grad)
        param.grad = None

    def _update(self, param: Tensor, grad: Tensor) -> None:
        """Update a parameter from its whole gradient, summed over processes."""
        whole, compressed = distributed.reduce_gradient(self.optimizer, param, grad)
        self._limit(whole if compressed is None else compressed)
        self.optimizer.update_parameter(param, whole, compressed)

    def _add_compressed(self, managed: ManagedParameter, grad: Tensor) -> None:
        """Add the compressed gradient of a micro-batch; the basis is refreshed from the first one when due."""
        exchange = self.optimizer.exchange
        whole = self._here(managed, grad)
        if managed.due():
            summed = whole if exchange.parts == 1 else exchange.sum(grad.clone())
            distributed.refresh(managed, summed, exchange)
        if whole is None or not managed.settled:
            return
        part = managed.compress(whole)
        self.sums[managed.param] = self.sums[managed.param] + part if managed.param in self.sums else part

    def _add_to_state(self, managed: ManagedParameter, grad: Tensor, opening: bool) -> None:
        """Add the gradient of a micro-batch to the rule's accumulator."""
        self._limit(grad, clip=False)
        whole = self._here(managed, grad)
        if whole is None:
            return
        values = managed.values()
        share = 1.0 / self.optimizer.exchange.parts
        managed.rule.accumulate(whole.float(), values, opening, managed.step == 0, share)
        managed.keep(values, 3 + self.arrived[managed.param], only=managed.rule.accumulator)

    def _finish(self, param: Tensor, grad: Tensor | None) -> None:
        """The update after the last micro-batch of an accumulated parameter."""
        managed, exchange = self.optimizer.managed[param], self.optimizer.exchange
        if managed.rule.accumulator:
            self._finish_in_state(managed)
        elif managed.rule.compresses:
            compressed = self.sums.pop(param, None)
            learned = exchange.sum(grad) if managed.rule.learns and grad is not None else None
            self._limit(learned, clip=False)
            if compressed is not None:
                exchange.sum(compressed)
                self._limit(compressed)
            if managed.placement.mode == "owner":
                learned = None if learned is None else self._here(managed, learned)
                if sharding.agree(compressed is not None, managed.placement):
                    managed.update(learned, compressed)
            elif compressed is not None:
                managed.update(learned, compressed)

    def _finish_in_state(self, managed: ManagedParameter) -> None:
        """Update from the accumulator, once it holds the sum over processes."""
        name, exchange = str(managed.rule.accumulator), self.optimizer.exchange
        holds = managed.placement.holds_state
        if holds and exchange.parts > 1:
            values = managed.values()
            exchange.sum(values[name])
            managed.keep(values, 2, only=name)
        ready = True
        if holds and managed.due():
            total = managed.values()[name]
            whole = sharding.all_rows(total, managed.placement) if managed.placement.mode == "rows" else total
            ready = managed.refresh_if_due(whole)
        if managed.placement.mode == "owner" and managed.rule.refreshes and managed.step == 0:
            ready = sharding.agree(ready, managed.placement)
        if ready:
            managed.update(None)

    @staticmethod
    def _here(managed: ManagedParameter, grad: Tensor) -> Tensor | None:
        """The gradient this process computes with: its rows, or all of them with the owner; None elsewhere."""
        if managed.placement.mode == "owner":
            return sharding.gather(sharding.local(grad), managed.param.shape, managed.placement)
        return sharding.local(grad)

    def _limit(self, grad: Tensor | None, clip: bool = True) -> None:
        """Take a non-finite gradient as zero and clip to max_norm, in place, without waiting for the device."""
        if grad is None:
            return
        mine = sharding.local(grad)
        square = torch.linalg.vector_norm(mine, dtype=torch.float32).square()
        norm = sharding.sum_over_rows(square, grad).sqrt()
        bad = ~torch.isfinite(norm)
        mine.masked_fill_(bad, 0.0)
        self.bad_gradients = bad.long() if self.bad_gradients is None else self.bad_gradients + bad
        if clip and self.max_norm > 0:
            mine.mul_((self.max_norm / (norm + 1e-6)).nan_to_num().clamp(max=1.0))
