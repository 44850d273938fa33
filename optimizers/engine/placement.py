"""Where a parameter and its state live: three placements with one interface.

    Replicated   every process that has the parameter has all of it, and its state
    RowShard     each process has some rows of it (FSDP2), and the state of these rows
    Owner        each process has some rows; one process, the owner, has the state and computes the direction

A rule that couples nothing beyond `row_block` rows runs on each process's shard. Any other rule is computed by one
owner: the shards of the gradient are gathered there, the direction is scattered back. Either way the result is that
of the full tensor. Methods marked as collectives must be called by all processes that share the parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import precision
from .execution import UpdateKernel
from .precision import Specs
from .rule import Scalars, State, UpdateRule


class Placement(ABC):
    """part, parts: this process among those that share the parameter. group, mesh: their process group and mesh."""

    part = 0
    parts = 1
    group: Any = None
    mesh: Any = None
    state_part = 0
    state_parts = 1
    """Which of several equal parts of the state is here, and how many there are."""
    holds_state = True
    """Whether this process has (a part of) the state."""
    state_elsewhere = False
    """Whether some processes see nothing of the state."""
    compiles = True
    """Whether the update is one kernel on this process."""

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros for a state tensor of this full shape; 0-D tensors are on every process."""

    @abstractmethod
    def assemble(self, grad: Tensor) -> Tensor | None:
        """The gradient that this process computes with; None where another one computes. A collective."""

    @abstractmethod
    def full(self, grad: Tensor | None) -> Tensor | None:
        """The full gradient for a refresh, from what `assemble` gave. A collective."""

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """A sum over this process's part of what `assemble` gave, added up over the parts. A collective."""

    @abstractmethod
    def agree(self, verdict: bool) -> bool:
        """What those that hold the state have found, on every process. A collective."""

    def update(
        self,
        kernel: UpdateKernel,
        weight: Tensor,
        grad: Tensor | None,
        compressed: Tensor | None,
        stored: State,
        s: Scalars,
        seed: int,
        shape: torch.Size,
    ) -> bool:
        """Run an eager kernel on this process's part of a parameter of this full shape; a collective for owners.

        Returns False where a decomposition failed that others wait for: the parameter then keeps its value.
        """
        kernel(weight, grad, compressed, stored, s, seed)
        return True


def first_row(part: int, parts: int, shape: torch.Size) -> int:
    """The number of the first row of a part: all parts but the last have as many rows, rounded up."""
    return part * -(-shape[0] // parts) if shape else 0


class Replicated(Placement):
    """Everything is on every process that has the parameter."""

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def assemble(self, grad: Tensor) -> Tensor | None:
        return grad

    def full(self, grad: Tensor | None) -> Tensor | None:
        return grad

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, verdict: bool) -> bool:
        return verdict


class RowShard(Placement):
    """Equal shards of rows, the state sharded alike."""

    def __init__(self, mesh: Any) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.parts, self.part = mesh.size(), mesh.get_local_rank()
        self.state_part, self.state_parts = self.part, self.parts

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if not shape:
            return torch.zeros(shape, dtype=dtype, device=device)
        from torch.distributed.tensor import DTensor, Shard

        mine = torch.zeros((shape[0] // self.parts, *shape[1:]), dtype=dtype, device=device)
        return DTensor.from_local(mine, self.mesh, [Shard(0)], run_check=False)

    def assemble(self, grad: Tensor) -> Tensor | None:
        return local(grad)

    def full(self, grad: Tensor | None) -> Tensor | None:
        assert grad is not None
        parts = [torch.empty_like(grad) for _ in range(self.parts)]
        dist.all_gather(parts, grad.contiguous(), group=self.group)
        return torch.cat(parts)

    def sum(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self.group)
        return value

    def agree(self, verdict: bool) -> bool:
        return verdict  # from the full gradient, the same everywhere


class Owner(Placement):
    """Shards of rows whose update one process computes. owner: that process among those that share the parameter."""

    state_elsewhere = True
    compiles = False

    def __init__(self, mesh: Any, owner: int, shape: torch.Size) -> None:
        self.mesh, self.group, self.owner, self.shape = mesh, mesh.get_group(), owner, shape
        self.parts, self.part = mesh.size(), mesh.get_local_rank()
        self.holds_state = self.part == owner

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def assemble(self, grad: Tensor) -> Tensor | None:
        return gather(local(grad), self.shape, self)

    def full(self, grad: Tensor | None) -> Tensor | None:
        return grad

    def sum(self, value: Tensor) -> Tensor:
        return value

    def agree(self, verdict: bool) -> bool:
        flag = torch.tensor([int(verdict)], device=self.mesh.device_type)
        dist.broadcast(flag, group=self.group, group_src=self.owner)
        return bool(flag.item())

    def update(
        self,
        kernel: UpdateKernel,
        weight: Tensor,
        grad: Tensor | None,
        compressed: Tensor | None,
        stored: State,
        s: Scalars,
        seed: int,
        shape: torch.Size,
    ) -> bool:
        direction, succeeded = None, True
        if self.holds_state:
            try:
                direction = kernel.direction(grad, compressed, stored, s, seed)
            except torch.linalg.LinAlgError:
                direction, succeeded = (
                    precision.widened(torch.zeros(shape, dtype=weight.dtype, device=weight.device)),
                    False,
                )
        kernel.write(weight, scatter(direction, weight, shape, self), s, seed)
        return succeeded


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor."""
    return hasattr(tensor, "to_local")


class Owners:
    """Deals parameters to the processes that compute them, so that all have about as much to do."""

    def __init__(self) -> None:
        self._loads: dict[int, list[int]] = {}

    def next(self, shape: torch.Size, parts: int) -> int:
        """The process with the least work so far; a matrix counts as its decomposition costs, m n min(m, n)."""
        loads = self._loads.setdefault(parts, [0] * parts)
        owner = loads.index(min(loads))
        loads[owner] += work(shape)
        return owner


def work(shape: torch.Size) -> int:
    """What computing a basis of this shape costs, m n min(m, n)."""
    return shape.numel() * (min(shape) if len(shape) > 1 else 1)


def deal(shapes: Sequence[torch.Size], parts: int) -> list[int]:
    """An owner for each of these at once, the largest first."""
    owners, dealt = Owners(), [0] * len(shapes)
    for number in sorted(range(len(shapes)), key=lambda n: -work(shapes[n])):
        dealt[number] = owners.next(shapes[number], parts)
    return dealt


def place(param: Tensor, rule: UpdateRule, specs: Specs, owners: Owners, name: str) -> Placement:
    """The placement of a parameter under its rule. Raises ValueError for a layout other than rows over one mesh."""
    if not is_sharded(param):
        return Replicated()
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"{name}: sharded as {placements}; the engine takes FSDP2's sharding of dim 0 over one mesh dimension"
        )
    if _splits(param.shape, rule, specs, mesh.size()):
        return RowShard(mesh)
    return Owner(mesh, owners.next(param.shape, mesh.size()), param.shape)


def _splits(shape: torch.Size, rule: UpdateRule, specs: Specs, parts: int) -> bool:
    """Whether shards of equal rows, whole blocks of the rule and whole blocks of 8-bit state exist."""
    block = rule.row_block(shape)
    if block is None or shape[0] % parts or (shape[0] // parts) % block:
        return False
    for _, spec, storage in specs:
        size = torch.Size(spec.shape).numel()
        if spec.shape and spec.shape[0] % parts:
            return False
        if storage == "int8" and (size // parts) % precision.BLOCK:
            return False
    return True


def slices(shape: torch.Size, rule: UpdateRule, specs: Specs, placement: Placement, largest: int) -> int:
    """How many equal parts of whole rows a large tensor (or this process's shard) is updated in, one after another.

    As many as keep each under `largest` elements where the rule couples nothing beyond rows, else 1.
    """
    fewest = -(-shape.numel() // (largest * placement.state_parts))
    if fewest <= 1 or placement.state_elsewhere or rule.compresses:
        return 1
    return next((n for n in range(fewest, 4 * fewest) if _splits(shape, rule, specs, placement.state_parts * n)), 1)


def gather(shard: Tensor, shape: torch.Size, placement: Owner) -> Tensor | None:
    """The full tensor on the owner, None elsewhere. A collective."""
    rows = -(-shape[0] // placement.parts)
    padded = _padded(shard, rows, shape)
    parts = [torch.empty_like(padded) for _ in range(placement.parts)] if placement.holds_state else None
    dist.gather(padded, parts, group=placement.group, group_dst=placement.owner)
    return torch.cat(parts)[: shape[0]] if parts is not None else None


def scatter(full: Tensor | None, like: Tensor, shape: torch.Size, placement: Owner) -> Tensor:
    """This process's rows of the owner's tensor, float32, in the shape of `like`. A collective."""
    rows = -(-shape[0] // placement.parts)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    mine = torch.empty((rows, *shape[1:]), dtype=dtype, device=like.device)
    parts = None
    if full is not None:
        parts = [_padded(full[i * rows : (i + 1) * rows], rows, shape) for i in range(placement.parts)]
    dist.scatter(mine, parts, group=placement.group, group_src=placement.owner)
    return mine[: like.shape[0]]


def _padded(part: Tensor, rows: int, shape: torch.Size) -> Tensor:
    """The rows, followed by zeros up to the size of the largest part."""
    if part.shape[0] == rows:
        return part.contiguous()
    padded = part.new_zeros((rows, *shape[1:]))
    padded[: part.shape[0]] = part
    return padded


def non_finite(params: Sequence[Tensor]) -> set[Tensor]:
    """Those of these parameters with gradients that are not finite, in any shard: the same set on all processes.

    Waits for the device once.
    """
    if not params or local(params[0]).is_meta:  # tensors without data predict memory
        return set()
    device = local(params[0]).device
    gradients = [local(p.grad) for p in params if p.grad is not None]
    bad = torch.stack([(~torch.isfinite(grad).all()).to(device, torch.int32) for grad in gradients])
    groups: dict[Any, list[int]] = {}
    for number, param in enumerate(params):
        if is_sharded(param):
            groups.setdefault(param.device_mesh.get_group(), []).append(number)  # type: ignore[attr-defined]
    for group, numbers in groups.items():
        some = bad[numbers]
        dist.all_reduce(some, group=group)
        bad[numbers] = some
    return {param for param, count in zip(params, bad.tolist(), strict=True) if count}
