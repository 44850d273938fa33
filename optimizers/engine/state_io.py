"""The optimizer's state as others see it: saved, loaded, replaced. Every tensor keeps its dtype, every difference is
named, and nothing changes when a state is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from . import owned_state
from .parameter import Host, ManagedParameter
from .placement import Owner, Replicated, is_sharded
from .roles import plain_names

Group = dict[str, Any]
OF_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "lr_scale", "name")
"""Keys that learning-rate schedulers and their users write into groups."""
OWN_OF_A_GROUP = ("params", "param_names", "route", "part")
"""Keys that stay those of the optimizer that loads."""


# -- saving -------------------------------------------------------------------------------------------------------


def complete(optimizer: Host, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict with what single owners hold, as DTensors sharded by rows. A collective where there are owners."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, param in enumerate(params):
        managed = optimizer.managed[param]
        if isinstance(managed.placement, Owner):
            state_dict["state"][index] = owned_state.spread_all(managed)
    return state_dict


# -- loading ------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What loading will write: the new values of groups, and the saved tensors of parameters that have some."""

    groups: list[Group]
    tensors: dict[Tensor, dict[str, Tensor]]
    filled: list[str]


def load_state_dict(optimizer: Host, state_dict: dict[str, Any]) -> None:
    """Copy a saved state into the allocated one.

    Parameters are matched by name where both sides have names, else by their order. Raises ValueError naming the
    first difference, on every process that shares the parameters; then nothing is changed. A collective where
    parameters are sharded.
    """
    plan, problem = None, None
    try:
        plan = _plan(optimizer, state_dict)
    except ValueError as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError) as error:  # a dict of another shape must not leave others waiting
        problem = f"this is no optimizer state: {type(error).__name__}: {error}"
    _agree(optimizer, plan, problem)
    assert plan is not None
    for index, group in enumerate(plan.groups):
        optimizer.param_groups[index].update(group)
    for key in plan.filled:
        optimizer.warnings[f"the saved groups have no {key}: it stays as constructed"] += 1
    for param, tensors in plan.tensors.items():
        managed = optimizer.managed[param]
        for name, tensor in tensors.items():
            owned_state.write(managed, name, tensor)
        managed.refreshes.forget()


def _plan(optimizer: Host, state_dict: Mapping[str, Any]) -> Plan:
    """Everything that is to be written, checked. Raises ValueError."""
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"this is no optimizer state: it has {', '.join(map(str, state_dict)) or 'nothing'}")
    ids = _matched(optimizer, state_dict["param_groups"])
    saved_group = {i: group for group in state_dict["param_groups"] for i in group["params"]}
    groups, filled = [], set()
    for group in optimizer.param_groups:
        members = [saved_group[ids[p]] for p in group["params"]]
        values = _group_values(optimizer, group, members)
        filled |= {k for k in group if k not in (*values, *OWN_OF_A_GROUP, *OF_SCHEDULERS)} if members else set()
        groups.append(values)
    tensors = {p: _entry(optimizer.managed[p], state_dict["state"].get(i)) for p, i in ids.items()}
    return Plan(groups, {p: entry for p, entry in tensors.items() if entry is not None}, sorted(filled))


def _matched(optimizer: Host, saved: list[Group]) -> dict[Tensor, Any]:
    """The saved id of each parameter."""
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    theirs = [i for group in saved for i in group["params"]]
    if all("param_names" in g for g in (*saved, *optimizer.param_groups)) and saved:
        our_names = plain_names(n for g in optimizer.param_groups for n in g["param_names"])
        their_names = plain_names(n for g in saved for n in g["param_names"])
        if len(their_names) != len(theirs):
            raise ValueError(f"the saved state names {len(their_names)} parameters and has {len(theirs)}")
        missing, unknown = sorted(set(our_names) - set(their_names)), sorted(set(their_names) - set(our_names))
        if missing or unknown:
            raise ValueError(
                f"the saved state is of another model: {len(missing)} parameters are missing from it "
                f"({', '.join(missing[:3]) or 'none'}), {len(unknown)} are not known here "
                f"({', '.join(unknown[:3]) or 'none'})"
            )
        by_name = dict(zip(their_names, theirs, strict=True))
        return {p: by_name[name] for p, name in zip(ours, our_names, strict=True)}
    if len(ours) != len(theirs):
        raise ValueError(f"the saved state has {len(theirs)} parameters, this optimizer has {len(ours)}")
    return dict(zip(ours, theirs, strict=True))


def _group_values(optimizer: Host, group: Group, saved: list[Group]) -> Group:
    """The values that a group takes from the saved groups of its parameters."""
    if not saved:
        return {}
    values = [{k: v for k, v in s.items() if k not in OWN_OF_A_GROUP} for s in saved]
    names = [optimizer.managed[p].name for p in group["params"]]
    other = next((i for i, v in enumerate(values) if not _same(v, values[0])), None)
    if other is not None:
        keys = sorted(k for k in values[0] if values[0][k] != values[other].get(k))
        raise ValueError(
            f"{names[0]} and {names[other]} are in one group here and were saved with different {', '.join(keys)}: "
            "construct the groups as they were saved"
        )
    unknown = sorted(k for k in values[0] if k not in group and k not in OF_SCHEDULERS)
    if unknown:
        raise ValueError(
            f"{names[0]}: the saved group has {', '.join(unknown)}, which {type(optimizer).__name__} does not know: "
            "the state is of another optimizer, or of another version"
        )
    return {k: tuple(v) if isinstance(group.get(k), tuple) and isinstance(v, list) else v for k, v in values[0].items()}


def _same(one: Group, other: Group) -> bool:
    return one is other or (one.keys() == other.keys() and all(one[k] == other[k] for k in one))


def _entry(managed: ManagedParameter, saved: Any) -> dict[str, Tensor] | None:
    """The saved tensors of one parameter, checked; None where a frozen parameter has none."""
    if saved is None and not managed.param.requires_grad:
        return None
    tensors = dict(saved or {})
    if not managed.placement.holds_state:
        # Only what all processes take part in is asked of those that hold no state.
        return {k: t for k, t in tensors.items() if k == "step" or (isinstance(t, Tensor) and is_sharded(t))}
    managed.check(tensors)
    for key, tensor in tensors.items():
        if is_sharded(tensor) and isinstance(managed.placement, Replicated):
            raise ValueError(
                f"{managed.name}: {key} of the saved state is sharded and the parameter is not; load a state that was "
                "saved with full_state_dict=True"
            )
    return tensors


def _agree(optimizer: Host, plan: Plan | None, problem: str | None) -> None:
    """Raise ValueError on every process when one of those that share parameters must refuse. A collective for them."""
    groups = {id(m.placement.group): m.placement.group for m in optimizer.managed.values() if m.placement.parts > 1}
    together = None
    if plan is not None:
        owned = {p: t for p, t in plan.tensors.items() if isinstance(optimizer.managed[p].placement, Owner)}
        together = [(optimizer.managed[p].name, k) for p, t in owned.items() for k in t if is_sharded(t[k])]
    for group in groups.values():
        said: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(said, (problem, together), group=group)
        if problem is None:
            problem = next((f"process {i}: {text}" for i, (text, _) in enumerate(said) if text is not None), None)
        if problem is None and any(others != together for _, others in said):
            problem = "the processes have different parts of the saved state: load the same state on all of them"
    if problem is not None:
        raise ValueError(problem)
