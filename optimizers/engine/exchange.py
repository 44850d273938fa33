"""How processes that hold copies of the parameters tell each other of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .placement import is_sharded


class Exchange(Protocol):
    """How gradients of replicated parameters are summed."""

    parts: int
    bytes_sent: int
    timed: Callable[[], AbstractContextManager[object]]

    def sum(self, tensor: Tensor) -> Tensor: ...

    def is_me(self, owner: int) -> bool: ...

    def broadcast(self, tensor: Tensor, owner: int) -> None: ...

    def any(self, flags: list[bool]) -> list[bool]: ...


class Alone:
    """One process: nothing travels."""

    parts = 1
    bytes_sent = 0
    timed: Callable[[], AbstractContextManager[object]] = nullcontext

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def is_me(self, owner: int) -> bool:
        return True

    def broadcast(self, tensor: Tensor, owner: int) -> None:
        return None

    def any(self, flags: list[bool]) -> list[bool]:
        return flags


class Replicas:
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
        if not is_sharded(tensor):
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
