"""Updates inside the backward pass: a parameter is updated as soon as its gradient exists, which is then freed."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from .accumulation import Accumulation, Compressed, GradientLimit, InGradient, InState, adds_to_state
from .exchange import Alone
from .parameter import Host, ManagedParameter
from .placement import is_sharded


class PerLayerUpdates:
    """The hooks of one optimizer, and what they have collected of the update under way."""

    def __init__(self, optimizer: Host) -> None:
        self.optimizer = optimizer
        self.micro_batches = 1
        self.announced = False
        self.arrived: dict[Tensor, int] = {}
        self.limit = GradientLimit()
        self._in_gradient, self._in_state = InGradient(self.limit), InState(self.limit)
        self.compressed = Compressed(self.limit)

    def watch(self, param: Tensor, meta: bool = False) -> None:
        """Update this parameter from its gradient hook on, also when it is frozen now and unfrozen later.

        A parameter on the meta device, where most optimizers only allocate, is updated when `meta` asks for it.
        """
        if param.is_meta and not meta:
            return
        hooked = param in _OWNERS
        _OWNERS[param] = weakref.ref(self)
        if hooked:
            return
        frozen = not param.requires_grad
        if frozen:
            param.requires_grad_(True)  # torch takes hooks of trainable tensors only, and keeps them
        param.register_post_accumulate_grad_hook(_on_gradient)
        if frozen:
            param.requires_grad_(False)

    def begin(self, micro_batches: int, max_norm: float) -> None:
        """Open an update of this many backward passes. Both numbers hold for the updates after it too."""
        name = type(self.optimizer).__name__
        if self.arrived:
            raise ValueError(
                f"{name}: begin_update before the last update was ended: call step() after its last backward pass, or "
                "abandon_update() to drop it"
            )
        if micro_batches > 1 and not self.accumulates():
            raise ValueError(
                f"{name}: per_layer frees each gradient after its micro-batch, and this "
                f"method needs the sum over {micro_batches}; use one micro-batch per update (a larger batch_size), a "
                "projected or momentum-only method, or leave out per_layer"
            )
        if micro_batches > 1 and max_norm > 0 and any(map(adds_to_state, self.optimizer.managed.values())):
            raise ValueError(
                f"{name}: per_layer adds each of {micro_batches} gradients to the state, so "
                "the norm of their sum cannot be limited; use one micro-batch per update, or no clipping"
            )
        self.micro_batches, self.limit.max_norm, self.announced = micro_batches, max_norm, True

    def accumulates(self) -> bool:
        """Whether the method can add up gradients without keeping them."""
        rules = [m.rule for m in self.optimizer.managed.values()]
        return any(rule.compresses or rule.accumulator for rule in rules)

    def close(self) -> None:
        """End the update: parameters that missed micro-batches are updated with what came."""
        self._warn_of_clipping()
        for param, count in list(self.arrived.items()):
            if count >= self.micro_batches and param.grad is not None:
                raise ValueError(
                    f"{self.optimizer.managed[param].name}: a gradient was written after its update in the backward "
                    "pass, as torch's DistributedDataParallel does. Use the bare model and call "
                    "optimizers.replicate(optimizer), or leave out per_layer"
                )
            if count < self.micro_batches:
                managed = self.optimizer.managed[param]
                self._way(managed).finish(managed, param.grad, self.optimizer.exchange)
                param.grad = None
        self._forget()

    def abandon(self) -> None:
        """End an update that must not be made: what was collected is dropped. Gradients that are in an accumulator
        already cannot be taken out; such parameters are updated with what came."""
        for param in list(self.arrived):
            managed = self.optimizer.managed[param]
            if not self._way(managed).drop(managed, self.optimizer.exchange):
                self.optimizer.warnings["parameters updated from a part of the micro-batches"] += 1
            param.grad = None
        self._forget()

    def _forget(self) -> None:
        self.arrived.clear()
        if count := self.limit.take_count():
            self.optimizer.warnings["non-finite gradients of single parameters, taken as zero"] += count

    def _way(self, managed: ManagedParameter) -> Accumulation:
        """How this parameter's gradients are added up."""
        if self.micro_batches == 1:
            return self._in_gradient
        if adds_to_state(managed):
            return self._in_state
        return self.compressed if managed.rule.compresses else self._in_gradient

    def _warn_of_clipping(self) -> None:
        """Once, in a loop that has never said how it clips: it may count on gradients that are gone."""
        if self.announced:
            return
        self.announced = True
        warnings.warn(
            "per_layer: gradients are used and freed inside the backward pass, so clip_grad_norm_ or a Trainer's "
            "max_grad_norm after it limits nothing. Call optimizer.begin_update(micro_batches, max_norm) once before "
            "training to clip by the norm of each parameter, or begin_update() if nothing is to be clipped",
            stacklevel=4,
        )

    @torch.no_grad()
    def on_gradient(self, param: Tensor) -> None:
        """Take the gradient that a backward pass has left in `param.grad`."""
        managed, grad = self.optimizer.managed[param], param.grad
        assert grad is not None
        managed.check_group()
        self._refuse(managed, grad)
        count = self.arrived[param] = self.arrived.get(param, 0) + 1
        way, last = self._way(managed), count == self.micro_batches
        with ordered_streams(grad.device, managed.quantised):
            way.take(managed, grad, self.optimizer.exchange, count)
            if last:
                way.finish(managed, grad, self.optimizer.exchange)
            if last or way.frees:
                param.grad = None

    def _refuse(self, managed: ManagedParameter, grad: Tensor) -> None:
        """Raise ValueError for a gradient from which no right update can be made."""
        managed.refuse_sparse(grad)
        if self.arrived.get(managed.param, 0) >= self.micro_batches:
            passes = self.micro_batches + 1
            managed.param.grad = None  # the update that is refused leaves nothing behind
            raise ValueError(
                f"{managed.name}: backward pass {passes} of an update of {self.micro_batches}, and per_layer has "
                f"made the update already. With several backward passes per update (a Trainer's "
                f"gradient_accumulation_steps) call optimizer.begin_update(micro_batches=N) before the first one and "
                "step() after the last; it holds until it is called again"
            )
        alone = isinstance(self.optimizer.exchange, Alone) and not is_sharded(managed.param)
        if alone and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"{managed.name}: per_layer would update each process's copy from its own gradient. Call "
                "optimizers.replicate(optimizer) and train the bare model (no "
                "DistributedDataParallel), shard it with fully_shard, or leave out per_layer"
            )


_OWNERS = WeakTensorKeyDictionary()
"""A weak reference to the `PerLayerUpdates` of every parameter that has a hook."""


def _on_gradient(param: Tensor) -> None:
    """The hook of every watched parameter. It keeps no optimizer alive: without one it does nothing."""
    if (owner := _owner(param)) is not None:
        owner.on_gradient(param)


def _owner(param: Tensor) -> PerLayerUpdates | None:
    return _OWNERS[param]() if param in _OWNERS else None


def refuse_second_optimizer(param: Tensor, name: str, own: object = None) -> None:
    """Raise ValueError when an optimizer other than `own` takes this parameter's gradient in the backward pass."""
    if (owner := _owner(param)) is None or owner.optimizer is own:
        return
    del owner
    gc.collect()  # an optimizer and its hooks refer to one another, so a deleted one may still be there
    if (owner := _owner(param)) is not None:
        raise ValueError(
            f"{name}: a per_layer optimizer ({type(owner.optimizer).__name__}) updates this parameter and frees its "
            "gradient inside the backward pass, so a second optimizer never sees one. Delete the first one (del "
            "optimizer), or give each optimizer its own parameters"
        )


def _refuse_foreign_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before every step of any optimizer: a library's can only be asked here."""
    if _OWNERS:
        for group in optimizer.param_groups:
            for number, param in enumerate(group["params"]):
                refuse_second_optimizer(param, f"{type(optimizer).__name__}, parameter {number} of a group", optimizer)


register_optimizer_step_pre_hook(_refuse_foreign_step)


@contextmanager
def ordered_streams(device: torch.device, quantised: bool) -> Iterator[None]:
    """On CUDA, a body with 8-bit state runs on the default stream, between what the present stream did and will do.

    FSDP2 calls gradient hooks on a stream of its own, and bitsandbytes launches its kernels on the default one: without
    an order it would quantise values that are not there yet.
    """
    if device.type != "cuda" or not quantised:
        yield
        return
    present, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    if present == default:
        yield
        return
    default.wait_stream(present)
    with torch.cuda.stream(default):
        yield
    present.wait_stream(default)
