"""One parameter under the engine: its rule, its state, and its update."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from . import execution, placement, precision
from .exchange import Exchange
from .execution import Program, UpdateKernel, program, signature
from .options import EngineOptions
from .placement import local
from .precision import Specs
from .refresh import RefreshState
from .rule import State, UpdateRule

SKIPPED_KEYS = ("params", "param_names", "lr", "base_lr", "initial_lr", "route", "weight_decay")

logger = logging.getLogger(__name__)
MOST_CHANGES = 4
"""Changes of a parameter's hyperparameters after which it is not compiled again."""


class Watcher(Protocol):
    """What looks at updates while they are made; see `diagnostics.Observer`."""

    def looks_at(self, managed: ManagedParameter) -> bool: ...

    def watching(self, managed: ManagedParameter, grad: Tensor | None) -> AbstractContextManager[None]: ...


@dataclass
class Shared:
    """What the parameters of one optimizer have in common. states: the optimizer's present `state`."""

    options: EngineOptions
    rule_for: Callable[[dict[str, Any], Tensor], UpdateRule]
    states: Callable[[], MutableMapping[Tensor, State]]
    warnings: Counter[str] = field(default_factory=Counter)
    observer: Watcher | None = None
    owners: placement.Owners = field(default_factory=placement.Owners)
    progress: Callable[[], None] = lambda: None
    """Called after each basis that was computed, which may take long: a sign of life."""

    compiler_works: bool = True

    def run(self, update: Program, *calls: tuple) -> None:
        """Make compiled updates; eagerly, with a warning, where the compiler fails and nobody insists on it."""
        try:
            update(*calls)
        except execution.CompilationError as error:
            if self.options.execution == "compiled":
                raise
            if self.compiler_works:
                logger.warning("torch.compile failed, updates stay eager: %s", error)
            self.compiler_works = False
            self.warnings["torch.compile failed, updates stay eager"] += 1
            for call in calls:
                update.kernel(*call)


class ManagedParameter:
    """A parameter with its rule and state. index numbers it within the optimizer and seeds its randomness.

    state: the optimizer's dictionary for it: an int64 "step" and the rule's tensors (without elements on a process
    that does not own the state of an owner-computed parameter).
    """

    def __init__(self, shared: Shared, param: Tensor, group: dict[str, Any], index: int, name: str) -> None:
        self.shared, self.param, self.group, self.index, self.name = shared, param, group, index, name
        self._refuse_kind()
        self.rule = shared.rule_for(group, param)
        if shared.options.execution == "compiled" and not self.rule.compilable:
            shared.warnings[f"{type(self.rule).__name__} with these settings cannot be compiled and runs eagerly"] += 1
        self.specs = self._specs()
        self.placement = placement.place(param, self.rule, self.specs, shared.owners, name)
        if self.rule.sees_weight and isinstance(self.placement, placement.Owner):
            raise ValueError(
                f"{name}: {type(self.rule).__name__} reads the whole weight, of which each process has a shard: "
                "use replicas (--parallel ddp)"
            )
        self._look_at_param()
        self.refreshes = RefreshState(self.rule)
        self._signature = group_signature(group)
        self._kernels: dict[tuple, Callable[..., Any]] = {}
        self._changes = 0
        self._known: list[Callable[[], Tensor | None]] = []
        self._last_step = 0
        _ = self.state

    # -- state --------------------------------------------------------------------------------------------------

    def _refuse_kind(self) -> None:
        """Raise ValueError for a parameter that no rule can update rightly."""
        param = self.param
        if param.is_complex():
            raise ValueError(f"{self.name}: complex parameters are not supported; keep two real ones (view_as_real)")
        if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"{self.name}: FullyShardedDataParallel has flattened this parameter, and its rows are gone; shard the "
                "model with torch.distributed.fsdp.fully_shard (FSDP2)"
            )

    def _look_at_param(self) -> None:
        """What follows from the parameter's dtype and device, for as long as it has them."""
        param, shared = self.param, self.shared
        self._kind = (param.dtype, param.device)
        self.slices = placement.slices(param.shape, self.rule, self.specs, self.placement, execution.SLICE)
        self.rounds = shared.options.weight_rounding == "stochastic" and param.dtype == torch.bfloat16
        self.draws = self.rounds or any(storage == "bfloat16" for _, _, storage in self.specs)
        if self.draws:
            precision.prepare_noise(param.device, [param.shape, *(spec.shape for _, spec, _ in self.specs)])

    def _follow_param(self) -> None:
        """Take a parameter that was cast or moved since: its state goes with it."""
        state = self.state
        self._refuse_kind()
        self.rule, self.specs = self.shared.rule_for(self.group, self.param), self._specs()
        self.refreshes.rule = self.rule
        self._look_at_param()
        self._kernels.clear()
        if self.quantised:
            precision.prepare_codes(self.param.device)
        for name, (_, dtype) in self.layout().items():
            if name in state and name != "step":
                state[name] = state[name].to(self.param.device, dtype)

    def _specs(self) -> Specs:
        specs, dtype = self.rule.state(self.param.shape), self.shared.options.state_dtype
        try:
            formats = {name: precision.storage_format(spec, dtype, self.param) for name, spec in specs.items()}
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if self.shared.options.state_rounding == "nearest":
            formats = {name: precision.NEAREST if form == "bfloat16" else form for name, form in formats.items()}
        return tuple((name, spec, formats[name]) for name, spec in specs.items())

    def layout(self) -> precision.Layout:
        """Shape and dtype of every stored tensor of the whole parameter, by name."""
        layout: precision.Layout = {"step": ((), torch.int64)}
        for name, spec, storage in self.specs:
            layout |= precision.layout(name, spec, storage)
        return layout

    def _allocate(self) -> State:
        if self.quantised and self.placement.holds_state:
            precision.prepare_codes(self.param.device)
        state = {"step": torch.zeros((), dtype=torch.int64, device="cpu")}
        for name, (shape, dtype) in self.layout().items():
            if name != "step" and self.placement.holds_state:
                state[name] = self.placement.allocate(shape, dtype, self.param.device)
            elif name != "step":
                state[name] = torch.empty(0, dtype=dtype, device=self.param.device)
        return state

    @property
    def state(self) -> State:
        """The optimizer's dictionary for this parameter, whoever put it there.

        One that was cleared starts anew; one that was replaced or edited is checked. Raises ValueError where it does
        not fit the rule.
        """
        state = self.shared.states().setdefault(self.param, {})
        if not self._known or not _are(self._known, state):
            self._adopt(state)
        return state

    def _adopt(self, state: State) -> None:
        """Take a state that somebody else has changed, or the first one."""
        if not state:
            state.update(self._allocate())
        elif isinstance(state.get("step"), int):
            state["step"] = torch.tensor(state["step"])
        self.check(state)
        self._known = [weakref.ref(tensor) for tensor in state.values()]
        self.refreshes.forget()

    def check(self, tensors: Mapping[str, Any]) -> None:
        """Raise ValueError when these are not the state tensors of this parameter on this process."""
        layout = self.layout()
        if not self.placement.holds_state:
            layout = {key: (shape if key == "step" else (0,), dtype) for key, (shape, dtype) in layout.items()}
        precision.check_fits(self.name, layout, tensors)

    def start_on_meta(self) -> None:
        """A fresh state is zero, hence has no basis; on the meta device its values could not say so."""
        if self.quantised:
            precision.prepare_codes(self.param.device, meta=True)
        self.refreshes.initialised = False if self.rule.refreshes else None

    @property
    def step(self) -> int:
        """Updates made so far."""
        step = int(self.state["step"])
        if step < self._last_step:
            self.refreshes.forget()
        self._last_step = step
        return step

    def stored(self) -> State:
        """This process's storage tensors, without the counter."""
        return {k: local(v) for k, v in self.state.items() if k != "step"}

    @property
    def quantised(self) -> bool:
        """Whether some of the state is kept in 8 bits."""
        return any(storage == "int8" for _, _, storage in self.specs)

    def values(self) -> State:
        """The float32 values of the state; float32 storage is returned itself, not a copy."""
        stored = self.stored()
        return {name: precision.load(name, spec, fmt, stored) for name, spec, fmt in self.specs}

    def write_state(self, values: State, purpose: int, only: str | None = None) -> None:
        """Write float32 values back, all or one. purpose separates the random numbers of different writes."""
        seed, stored = self.seed(purpose, self.step + 1), self.stored()
        for i, (name, spec, fmt) in enumerate(self.specs):
            if only is None or name == only:
                precision.store(name, spec, fmt, stored, values[name], seed + i, self.placement.state_part)

    def seed(self, purpose: int, step: int) -> int:
        """A 30-bit seed of this parameter for an update."""
        mixed = (self.shared.options.rounding_seed * 8 + purpose + 1) * 0x9E3779B1
        return (mixed ^ (self.index + 1) * 0x85EBCA6B ^ (step + 1) * 0xC2B2AE35) & 0x3FFFFFFF

    def check_group(self) -> None:
        """Make the rule again when a hyperparameter of the group was changed, or the parameter cast or moved.

        Raises ValueError if the state cannot follow.
        """
        if (self.param.dtype, self.param.device) != self._kind:
            self._follow_param()
        now = group_signature(self.group)
        if now == self._signature:
            return
        self.rule, self._signature = self.shared.rule_for(self.group, self.param), now
        self.refreshes.rule = self.rule
        self._kernels.clear()
        self._changes += 1
        if self._is_restless() and self.shared.options.execution == "compiled":
            self.shared.warnings[f"{self.name}: its hyperparameters change at every update, so it runs eagerly"] += 1
        if self._specs() != self.specs:
            raise ValueError(f"{self.name}: a hyperparameter that shapes the state was changed after construction")

    # -- refresh ------------------------------------------------------------------------------------------------

    def refresh_due(self) -> bool:
        """Whether the next update needs a refresh that has not been made yet; the same on every process."""
        step = self.step  # first: it sees whether the state is another one since
        if not self.rule.refreshes or self.refreshes.tried_for == step + 1:
            return False
        return self._wants_refresh() or (step == 0 and self.placement.state_elsewhere)

    def _wants_refresh(self) -> bool:
        def ask() -> bool:
            return self.rule.initialised(self.values()) if self.placement.holds_state else self.step > 0

        offset = self.index if self.shared.options.stagger_refresh else 0
        return self.refreshes.wanted(self.step + 1, offset, ask)

    def try_refresh(self, grad: Tensor | None) -> bool:
        """Refresh from the full gradient, if it is here and the rule wants it; whether there is a basis now."""
        return grad is not None and (self.refresh(grad) if self._wants_refresh() else True)

    def refresh_from(self, grad: Tensor | None) -> None:
        """Refresh from the full gradient, where it is; known to all processes afterwards. A collective of owners."""
        self.refreshes.note(self.step + 1, self.placement.agree(self.try_refresh(grad)))

    def assemble(self, grad: Tensor) -> Tensor | None:
        """The gradient that this process computes with; on the way, what is due is refreshed. A collective."""
        own = self.placement.assemble(grad)
        if self.refresh_due():
            self.refresh_from(self.placement.full(own))
        return own

    def refresh(self, grad: Tensor) -> bool:
        """Refresh from the whole gradient, where this process holds the state; True when the state has changed."""
        whole = precision.widened(grad)
        if not self.finite(whole):
            return False
        rng = torch.Generator().manual_seed(self.seed(1, self.step + 1))
        values = self.values()
        try:
            changed = self.rule.refresh(whole, values, rng)
        except torch.linalg.LinAlgError:
            self.shared.warnings[f"{self.name}: the SVD failed, the old basis stays"] += 1
            return False
        finally:
            self.shared.progress()
        if changed:
            self.write_state(values, 2)
        return changed

    def finite(self, grad: Tensor) -> bool:
        """Whether the gradient is finite; counts a warning if not. Waits for the device."""
        if torch.isfinite(grad).all():
            return True
        self.warn_of_gradient()
        return False

    def warn_of_gradient(self) -> None:
        """Count a gradient that is not finite."""
        self.shared.warnings[f"{self.name}: non-finite gradient, the old basis stays"] += 1

    def refuse_sparse(self, grad: Tensor) -> None:
        """Raise ValueError for a sparse gradient."""
        if grad.is_sparse:
            raise ValueError(f"{self.name}: sparse gradients are not supported; use sparse=False in the embedding")

    def refresh_if_due(self, grad: Tensor) -> bool:
        """Refresh from the full gradient when its turn has come; False while that has never succeeded."""
        if self.refresh_due():
            self.refresh_from(grad)
        return self.refreshes.ready

    # -- update -------------------------------------------------------------------------------------------------

    def compress(self, grad: Tensor) -> Tensor:
        """What the rule needs of a gradient, float32; linear, so it may be accumulated and summed over processes."""
        return self.rule.compress(precision.widened(grad), LoadedWhenAsked(self))

    def update(
        self, grad: Tensor | None, compressed: Tensor | None = None, batch: PendingUpdates | None = None
    ) -> None:
        """Update weight and state from the whole gradient, or from its compressed form, or (neither) from what was
        accumulated in the rule's accumulator. A compiled update may wait in the batch for others like it."""
        observer = self.shared.observer
        if batch is not None and self._compiles() and (observer is None or not observer.looks_at(self)):
            batch.add(self, self._kernel(self.step == 0, grad, compressed), self._call(grad, compressed))
        elif observer is None:
            self._count(grad, compressed)
        else:
            with observer.watching(self, grad):
                self._count(grad, compressed)

    def _count(self, grad: Tensor | None, compressed: Tensor | None) -> None:
        try:
            self._update(grad, compressed)
        except torch.linalg.LinAlgError:
            # Raised before anything is written: a rule decomposes before it changes its state.
            self.shared.warnings[f"{self.name}: the SVD failed, the old basis stays"] += 1
            return
        self.state["step"] += 1

    def _update(self, grad: Tensor | None, compressed: Tensor | None) -> None:
        step = self.step + 1
        if self.slices > 1 and not self._compiles():
            return self._update_in_slices(step, grad)
        kernel = self._kernel(step == 1, grad, compressed)
        if self._compiles():
            return self.shared.run(kernel, self._call(grad, compressed))
        weight, numbers = local(self.param), self._numbers(step)
        if not self.placement.update(kernel, weight, grad, compressed, self.stored(), *numbers, self.param.shape):
            self.shared.warnings[f"{self.name}: the SVD failed, this update leaves it alone"] += 1

    def _call(self, grad: Tensor | None, compressed: Tensor | None) -> tuple:
        """What a program takes for this parameter's next update."""
        return local(self.param), grad, compressed, self.stored(), *self._numbers(self.step + 1)

    def _update_in_slices(self, step: int, grad: Tensor | None) -> None:
        """The eager update of a large tensor, some rows after others: float32 temporaries have the size of a slice."""
        values, seed = self._numbers(step)
        weight, stored = local(self.param), self.stored()

        def rows(tensor: Tensor, number: int) -> Tensor:
            return tensor.chunk(self.slices)[number] if tensor.ndim else tensor

        for number in range(self.slices):
            kernel = self._kernel(step == 1, grad, None, number)
            part = {name: rows(tensor, number) for name, tensor in stored.items()}
            kernel(rows(weight, number), None if grad is None else rows(grad, number), None, part, values, seed)

    def _compiles(self) -> bool:
        way = self.shared.options.execution
        if way == "eager" or not self.rule.compilable or not self.placement.compiles or self._is_restless():
            return False
        return way == "compiled" or (self.shared.compiler_works and self.step >= execution.AUTO_AFTER)

    def _is_restless(self) -> bool:
        """Whether hyperparameters that rules are compiled with change again and again, as OneCycleLR's betas do."""
        return self._changes > MOST_CHANGES

    def _numbers(self, step: int) -> tuple[dict[str, float], int]:
        """The numbers of one update and its seed."""
        lr = float(self.group["lr"])
        base = self.group["base_lr"]
        values = {"lr": lr, "keep": 1.0 - lr * self.group["weight_decay"]}
        values |= self.rule.scalars(step, lr / base if base else 1.0)
        if self.rule.sees_weight:
            values["weight_decay"] = self.group["weight_decay"]
        return values, self.seed(0, step) if self.draws else 0

    def _kernel(self, first: bool, grad: Tensor | None, compressed: Tensor | None, number: int | None = None) -> Any:
        """The kernel of the whole, or of one of the slices."""
        decays = self.group["weight_decay"] != 0.0
        weight = local(self.param)
        compiles = self._compiles()
        key = (first, decays, number, compiles, weight.stride(), _layout(grad), _layout(compressed))
        if key not in self._kernels:
            place = self.placement
            first_row, part = placement.first_row(place.part, place.parts, self.param.shape), place.state_part
            if number is not None:
                part = place.part * self.slices + number
                first_row = part * (weight.shape[0] // self.slices)
            kernel = UpdateKernel(self.rule, self.specs, first, decays, self.rounds, first_row, part)
            self._kernels[key] = program(kernel, signature(weight, grad, compressed)) if compiles else kernel
        return self._kernels[key]


class LoadedWhenAsked(dict[str, Tensor]):
    """The float32 values of a state, each loaded when a rule asks for it: `compress` needs a basis and no moments."""

    def __init__(self, managed: ManagedParameter) -> None:
        super().__init__()
        self._specs = {name: (spec, storage) for name, spec, storage in managed.specs}
        self._stored = managed.stored()

    def __missing__(self, name: str) -> Tensor:
        self[name] = precision.load(name, *self._specs[name], self._stored)
        return self[name]


class PendingUpdates:
    """Compiled updates of one step, waiting for others of the same program; `finish` makes those still waiting."""

    def __init__(self) -> None:
        self._waiting: dict[Program, list[tuple[ManagedParameter, tuple]]] = {}

    def add(self, managed: ManagedParameter, update: Program, call: tuple) -> None:
        """Take an update; it is made as soon as there are enough of its kind."""
        waiting = self._waiting.setdefault(update, [])
        waiting.append((managed, call))
        if len(waiting) >= update.together:
            self._make(update, self._waiting.pop(update))

    def finish(self) -> None:
        """Make the remaining updates."""
        for update, waiting in self._waiting.items():
            self._make(update, waiting)
        self._waiting.clear()

    @staticmethod
    def _make(update: Program, ready: list[tuple[ManagedParameter, tuple]]) -> None:
        ready[0][0].shared.run(update, *(call for _, call in ready))
        for managed, _ in ready:
            managed.state["step"] += 1


def _are(known: list[Callable[[], Tensor | None]], state: State) -> bool:
    """Whether a state holds just the tensors of these weak references."""
    pairs = zip(known, state.values(), strict=False)
    return len(known) == len(state) and all(tensor is not None and ref() is tensor for ref, tensor in pairs)


def _layout(tensor: Tensor | None) -> tuple | None:
    """What may change between two gradients of one parameter, and a compiled kernel depends on."""
    return None if tensor is None else (tensor.dtype, tensor.stride())


def group_signature(group: dict[str, Any]) -> tuple:
    """The hyperparameters of a group that its rules depend on, hashable."""
    items = ((k, v) for k, v in group.items() if k not in SKIPPED_KEYS)
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in items)


class Host(Protocol):
    """What the parts of the engine need of the optimizer that they work for."""

    param_groups: list[dict[str, Any]]
    managed: dict[Tensor, ManagedParameter]
    exchange: Exchange

    @property
    def warnings(self) -> Counter[str]: ...
