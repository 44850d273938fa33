"""Parameters sharded by rows (FSDP2): which work on their shard, which are computed whole by an owner.

A rule that couples nothing beyond `row_block` rows runs on each process's shard, with its state sharded alike. Any
other rule is computed by one owner: the shards of the gradient are gathered there, the direction is scattered back,
the state lives with the owner alone. Either way the result is that of the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from . import precision
from .rule import UpdateRule

if TYPE_CHECKING:
    from .parameter import ManagedParameter, Specs


@dataclass(frozen=True)
class Placement:
    """Where a parameter's state lives.

    mode: "whole" on every process that has the parameter, "rows" a shard each, "owner" with process `owner`.
    part, parts: this process among those that share the parameter. group: their process group.
    """

    mode: Literal["whole", "rows", "owner"] = "whole"
    part: int = 0
    parts: int = 1
    owner: int = 0
    group: Any = None
    mesh: Any = None

    @property
    def holds_state(self) -> bool:
        return self.mode != "owner" or self.part == self.owner

    def first_row(self, shape: torch.Size) -> int:
        """The number of this process's first row: all parts but the last have as many rows, rounded up."""
        return self.part * -(-shape[0] // self.parts) if shape else 0

    @property
    def state_part(self) -> int:
        """Which of several equal parts of the state is here; an owner has the whole."""
        return 0 if self.mode == "owner" else self.part


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
        return Placement()
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"{name}: sharded as {placements}; the engine takes FSDP2's sharding of dim 0 over one mesh dimension"
        )
    parts, part = mesh.size(), mesh.get_local_rank()
    if _splits(param.shape, rule, specs, parts):
        return Placement("rows", part, parts, 0, mesh.get_group(), mesh)
    return Placement("owner", part, parts, owners.next(param.shape, parts), mesh.get_group(), mesh)


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
    parts = placement.parts if placement.mode == "rows" else 1
    fewest = -(-shape.numel() // (largest * parts))
    if fewest <= 1 or placement.mode == "owner" or rule.compresses:
        return 1
    return next((n for n in range(fewest, 4 * fewest) if _splits(shape, rule, specs, parts * n)), 1)


def allocate(shape: tuple[int, ...], dtype: torch.dtype, param: Tensor, placement: Placement) -> Tensor:
    """Zeros for a state tensor of this whole shape, placed like its parameter; 0-D tensors are on every process."""
    device = param.device
    if placement.mode != "rows" or not shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    from torch.distributed.tensor import DTensor, Shard

    mine = torch.zeros((shape[0] // placement.parts, *shape[1:]), dtype=dtype, device=device)
    return DTensor.from_local(mine, placement.mesh, [Shard(0)], run_check=False)


def gather(shard: Tensor, shape: torch.Size, placement: Placement) -> Tensor | None:
    """The whole tensor on the owner, None elsewhere. A collective."""
    rows = -(-shape[0] // placement.parts)
    padded = _padded(shard, rows, shape)
    parts = [torch.empty_like(padded) for _ in range(placement.parts)] if placement.holds_state else None
    dist.gather(padded, parts, group=placement.group, group_dst=placement.owner)
    return torch.cat(parts)[: shape[0]] if parts is not None else None


def scatter(whole: Tensor | None, like: Tensor, shape: torch.Size, placement: Placement) -> Tensor:
    """This process's rows of the owner's tensor, float32, in the shape of `like`. A collective."""
    rows = -(-shape[0] // placement.parts)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    mine = torch.empty((rows, *shape[1:]), dtype=dtype, device=like.device)
    parts = None
    if whole is not None:
        parts = [_padded(whole[i * rows : (i + 1) * rows], rows, shape) for i in range(placement.parts)]
    dist.scatter(mine, parts, group=placement.group, group_src=placement.owner)
    return mine[: like.shape[0]]


def _padded(part: Tensor, rows: int, shape: torch.Size) -> Tensor:
    """The rows, followed by zeros up to the size of the largest part."""
    if part.shape[0] == rows:
        return part.contiguous()
    padded = part.new_zeros((rows, *shape[1:]))
    padded[: part.shape[0]] = part
    return padded


def all_rows(shard: Tensor, placement: Placement) -> Tensor:
    """The whole tensor on every process, from shards of equal rows. A collective."""
    parts = [torch.empty_like(shard) for _ in range(placement.parts)]
    dist.all_gather(parts, shard.contiguous(), group=placement.group)
    return torch.cat(parts)


def gather_gradient(param: Tensor, placement: Placement) -> Tensor | None:
    """The whole gradient of an owner-computed parameter on the owner, None elsewhere. A collective."""
    assert param.grad is not None
    return gather(local(param.grad), param.shape, placement)


def agree(verdict: bool, placement: Placement) -> bool:
    """The owner's verdict, on every process. A collective for owner-computed parameters."""
    if placement.mode != "owner":
        return verdict
    flag = torch.tensor([int(verdict)], device=placement.mesh.device_type)
    dist.broadcast(flag, group=placement.group, group_src=placement.owner)
    return bool(flag.item())


def agree_on_refreshes(parameters: Sequence[ManagedParameter]) -> None:
    """Tell all processes which owner-computed parameters have a basis now. One collective for all of a group."""
    by_group: dict[Any, list[ManagedParameter]] = {}
    for managed in parameters:
        if managed.placement.mode == "owner":
            by_group.setdefault(managed.placement.group, []).append(managed)
    for group, members in by_group.items():
        mine = [int(m.placement.holds_state and bool(m.initialised)) for m in members]
        flags = torch.tensor(mine, device=members[0].placement.mesh.device_type)
        dist.all_reduce(flags, group=group)
        for managed, initialised in zip(members, flags.tolist(), strict=True):
            if not managed.placement.holds_state:
                managed.note_refresh(bool(initialised))


def non_finite(params: Sequence[Tensor]) -> set[Tensor]:
    """Those of these parameters with gradients that are not finite, in any shard: the same set on all processes.

    Waits for the device once.
    """
    if not params:
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


def sum_over_rows(value: Tensor, of: Tensor) -> Tensor:
    """A local sum over the shards of `of`, added up over the processes that share it."""
    if is_sharded(of):
        dist.all_reduce(value, group=of.device_mesh.get_group())  # type: ignore[attr-defined]
    return value
