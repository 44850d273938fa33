"""What a method has to say: its mathematics on one tensor, and its state as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kind = Literal["moment", "second_moment", "basis", "residual", "statistic"]
State = dict[str, Tensor]
Scalars = Mapping[str, float | Tensor]
Decay = Literal["after", "before", "inside"]
Side = Literal["right", "left"]
Bases = dict[str, tuple[Tensor, Side]]


@dataclass(frozen=True)
class StateSpec:
    """One state tensor, described before it is allocated.

    shape: its shape for the whole parameter. kind decides which storage formats apply:
    moment, residual (signed) and second_moment (non-negative) follow `state_dtype`, a basis is never
    kept in 8 bits, a statistic is always float32. `format` "int8" overrides `state_dtype` for this tensor,
    "unquantized" keeps it from being int8.
    """

    shape: tuple[int, ...]
    kind: Kind
    format: str | None = None


@dataclass(frozen=True)
class UpdateRule:
    """The update of one parameter. Subclasses add hyperparameters as fields and override the methods below.

    The engine calls them with float32 tensors, whatever the storage formats; `state` tensors are changed in place.
    `direction` and `learn` must be compile-safe: no `.item()`, no branch on values.
    Learning rate, decoupled weight decay, rounding, storage, distribution and saving belong to the engine.
    """

    decay: ClassVar[Decay] = "after"
    """Whether decoupled weight decay multiplies the weight after or before the step, or is part of `direction`, which
    then finds "weight_decay" among its scalars and must see the weight."""
    lr_inside: ClassVar[bool] = False
    """True when `direction` already contains the learning rate (Adafactor averages scaled updates)."""
    compresses: ClassVar[bool] = False
    """Whether the class overrides `compress`."""
    follows_gradient: ClassVar[bool] = False
    """Whether the class overrides `learn`, which needs the whole gradient at every update."""
    refreshes: ClassVar[bool] = False
    """Whether the class overrides `refresh`, which must have succeeded once before the first update can be made."""
    moves_basis: ClassVar[bool] = False
    """True when a basis moves at every update: a non-finite gradient must then be kept away from the rule."""
    projects_last: ClassVar[bool] = False
    """True when `direction` moves the basis first and projects the gradient on the new one."""
    sees_weight: ClassVar[bool] = False
    """True when `direction` reads the weight: it is in `state` as "weight", float32, not to be changed. Shards hold
    some rows of it, so such a rule runs on shards only if it answers `row_block`."""
    compilable: ClassVar[bool] = True
    """False when `direction` holds an operation that torch.compile cannot trace."""
    accumulator: ClassVar[str | None] = None
    """A state tensor that can take gradients of micro-batches directly (see `accumulate`)."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.compresses = cls.compress is not UpdateRule.compress
        cls.follows_gradient = cls.learn is not UpdateRule.learn
        cls.refreshes = cls.refresh is not UpdateRule.refresh

    @property
    def lr_factor(self) -> float:
        """The constant that `direction` contains beside the method's own step, for reports of the applied rate."""
        return 1.0

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        """State tensors of a parameter of this shape, by name."""
        return {}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        """Numbers that change with the update, computed in double precision on the host.

        step: updates of this parameter, counted from 1. lr_ratio: lr of this update / constructor's lr.
        `direction` and `learn` find them, with "lr" added, in their argument `s`. "keep" replaces the factor of weight
        decay: 1 where an update must leave the weight alone.
        """
        return {}

    def compress(self, grad: Tensor, state: State) -> Tensor:
        """The part of the gradient that `direction` needs; linear in the gradient."""
        return grad

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        """The step before the learning rate, in the shape of the parameter: W <- W - lr * direction.

        grad: the compressed gradient (None when it is in the accumulator already; only rules that have one see that).
        first: True on the first update of this parameter.
        """
        raise NotImplementedError

    def learn(self, grad: Tensor, compressed: Tensor, state: State, s: Scalars, first: bool) -> None:
        """Change the state from the whole gradient, and what `compress` made of it, after the weight step."""

    def refresh_due(self, step: int, offset: int) -> bool:
        """Whether `refresh` comes before update `step`; offset staggers refreshes between parameters."""
        return False

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        """The rare, expensive part, from the whole gradient. Returns False to keep what was there."""
        return True

    def initialised(self, state: State) -> bool:
        """Whether a refresh has succeeded before; asked once after loading a state."""
        return True

    def bases(self, state: State) -> Bases:
        """Bases on whose spans the gradient is projected, in order, by their name in the state; for diagnostics."""
        return {}

    def row_block(self, shape: torch.Size) -> int | None:
        """How many consecutive rows belong together when the tensor is sharded by rows; None: all of them.

        Asked by sharded execution: a rule that couples nothing beyond a row answers 1.
        """
        return None

    def accumulate(self, grad: Tensor, state: State, opening: bool, first: bool, share: float) -> None:
        """Add the gradient of a micro-batch to `accumulator`; `direction` is then called with None for it.

        opening: the first micro-batch of the update. share: 1 / processes that will add up their accumulators;
        what the accumulator held before the update must be multiplied with it once.
        """
        raise NotImplementedError
