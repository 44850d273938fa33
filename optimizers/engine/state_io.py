"""Loading of optimizer state: every tensor keeps its dtype, every difference is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .optimizer import EngineOptimizer


def load_state_dict(optimizer: EngineOptimizer, state_dict: dict[str, Any]) -> None:
    """Copy a saved state into the allocated one.

    torch's own loader casts state to the parameter's dtype, 8-bit codes included, and so cannot be used for tensors;
    it still checks and restores the groups. Raises ValueError naming the first difference; then nothing is changed.
    """
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    theirs = [i for group in state_dict["param_groups"] for i in group["params"]]
    if len(ours) != len(theirs):
        raise ValueError(f"the saved state has {len(theirs)} parameters, this optimizer has {len(ours)}")
    saved = {p: state_dict["state"].get(i, {}) for p, i in zip(ours, theirs, strict=True)}
    for param, tensors in saved.items():
        check(optimizer, param, tensors)
    kept = dict(optimizer.state)
    torch.optim.Optimizer.load_state_dict(optimizer, {"state": {}, "param_groups": state_dict["param_groups"]})
    optimizer.state.update(kept)
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for param, group in groups:
        managed = optimizer.managed[param]
        managed.group, managed.settled, managed.refreshed_at = group, None, 0
        for name, tensor in saved[param].items():
            optimizer.state[param][name].copy_(tensor)


def check(optimizer: EngineOptimizer, param: torch.Tensor, tensors: dict[str, Any]) -> None:
    """Raise ValueError when saved tensors of a parameter do not fit the allocated ones."""
    name, allocated = optimizer.managed[param].name, optimizer.state[param]
    missing = sorted(set(allocated) - set(tensors))
    unknown = sorted(set(tensors) - set(allocated))
    if missing or unknown:
        raise ValueError(
            f"{name}: the saved state is of another method or format (missing {missing or 'nothing'}, "
            f"not known here {unknown or 'nothing'})"
        )
    for key, tensor in tensors.items():
        want = allocated[key]
        if tuple(tensor.shape) != tuple(want.shape) or tensor.dtype != want.dtype:
            raise ValueError(
                f"{name}: saved {key} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"here it is {want.dtype} {tuple(want.shape)}"
            )
