"""Counts the bytes of live tensors, operation by operation: on real tensors a measurement, on meta a prediction."""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TRANSIENT = "transient"


Bytes = dict[str, int]
"""Kind of tensor -> bytes."""


@dataclass(frozen=True)
class Account:
    """Where the bytes were. moments: what ran -> what was held when it held most. largest: the most of each kind."""

    moments: dict[str, Bytes]
    largest: Bytes

    @property
    def moment(self) -> str:
        """What ran when most was held."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def at_peak(self) -> Bytes:
        """What was held then, by kind; the values add up to `peak`."""
        return self.moments[self.moment]

    @property
    def peak(self) -> int:
        """The largest sum of live tensors, bytes."""
        return sum(self.at_peak.values())


@dataclass(frozen=True)
class _Event:
    storage: int
    change: int
    moment: str


class Ledger(TorchDispatchMode):
    """While active, notes when the storage of each tensor on a device is born and when it is gone.

    `stage` and `moment` are noted with what happens next. Memory that a kernel takes and gives back within one
    operation is not seen. On the meta device, where a condition has no value, equalities are taken as false and all
    others as true.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device_type = device.type
        self.stage, self.moment = "", ""
        self._events: list[_Event] = []
        self._kinds: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._references: dict[int, weakref.ref] = {}
        self._equalities: set[int] = set()
        self._seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return self._number(args[0]) not in self._equalities
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                number = self._number(tensor)
                if number is not None and function.overloadpacket is torch.ops.aten.eq:
                    self._equalities.add(number)
        return result

    def mark(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Say what these tensors are; those that existed before the ledger count from now on."""
        for tensor in tensors:
            if (number := self._number(tensor)) is not None:
                self._kinds[number] = kind

    def mark_born_in(self, moment: str, kind: str) -> None:
        """Say what all live tensors are that were made in a moment of this stage and have not been marked."""
        alive, noted = set(self._numbers.values()), self._noted(moment)
        for event in reversed(self._events):
            if event.moment != noted and event.moment != self._noted():
                return
            if event.change > 0 and event.moment == noted and event.storage in alive:
                self._kinds.setdefault(event.storage, kind)

    def account(self) -> Account:
        """What was noted so far."""
        held: Counter[str] = Counter()
        largest: Counter[str] = Counter()
        moments: dict[str, Bytes] = {}
        highest: Counter[str] = Counter()
        total = 0
        for event in self._events:
            kind = self._kinds.get(event.storage, TRANSIENT)
            held[kind] += event.change
            total += event.change
            largest[kind] = max(largest[kind], held[kind])
            if total > highest[event.moment]:
                highest[event.moment], moments[event.moment] = total, dict(held)
        return Account(moments, dict(largest))

    def _noted(self, moment: str | None = None) -> str:
        return f"{self.stage}, {self.moment if moment is None else moment}"

    def _number(self, tensor: Tensor) -> int | None:
        """The number of a tensor's storage, given when first seen; None for one on another device, or without one."""
        if tensor.device.type != self.device_type or tensor.layout != torch.strided:
            return None
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers:
            return self._numbers[address]
        self._seen = number = self._seen + 1

        def gone(_: weakref.ref) -> None:
            del self._numbers[address], self._references[number]
            self._events.append(_Event(number, -size, self._noted()))

        self._references[number] = weakref.ref(storage, gone)
        self._numbers[address] = number
        self._events.append(_Event(number, size, self._noted()))
        return number
