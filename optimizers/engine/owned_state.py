"""State that one owner computes, in the form of the state dicts of torch: DTensors sharded by rows.

Between updates the owner alone has it. A state dict must have the same tensors on every process, or
`torch.distributed.checkpoint` saves a part, loads a part, or waits for ever."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .parameter import ManagedParameter
from .placement import Owner, Replicated, gather, is_sharded, local


def spread_all(managed: ManagedParameter) -> dict[str, Tensor]:
    """The state of one owned parameter on every process. A collective."""
    state, place = managed.state, managed.placement
    assert isinstance(place, Owner)
    spread = {"step": state["step"]}
    for name, (shape, dtype) in managed.layout().items():
        if name != "step":
            mine = state[name] if place.holds_state else None
            spread[name] = _spread(mine, shape, dtype, place, managed.param.device)
    return spread


def write(managed: ManagedParameter, name: str, saved: Tensor) -> None:
    """Copy a saved tensor of the whole shape into the state of a parameter. A collective for owned DTensors."""
    place, target = managed.placement, managed.state[name]
    if name == "step" or isinstance(place, Replicated):
        target.copy_(saved)
    elif isinstance(place, Owner):
        whole = gather(local(saved), saved.shape, place) if is_sharded(saved) else saved
        if place.holds_state and whole is not None:
            target.copy_(whole)
    elif is_sharded(target) and not is_sharded(saved):
        rows = local(target).shape[0]
        local(target).copy_(saved[place.part * rows : (place.part + 1) * rows])
    else:
        target.copy_(saved)


def _spread(
    whole: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, place: Owner, device: torch.device
) -> Tensor:
    """The owner's tensor as a DTensor of consecutive rows; a 0-D tensor as it is, on every process."""
    if not shape:
        mine = torch.empty((), dtype=dtype, device=device) if whole is None else whole.clone()
        dist.broadcast(mine, group=place.group, group_src=place.owner)
        return mine
    from torch.distributed.tensor import DTensor, Shard

    rows = -(-shape[0] // place.parts)
    mine = torch.empty((rows, *shape[1:]), dtype=dtype, device=device)
    parts = None
    if whole is not None:
        padded = whole.new_zeros((rows * place.parts, *shape[1:]))
        padded[: shape[0]] = whole
        parts = list(padded.chunk(place.parts))
    dist.scatter(mine, parts, group=place.group, group_src=place.owner)
    mine = mine[: max(0, min(rows, shape[0] - place.part * rows))]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(mine, place.mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)
