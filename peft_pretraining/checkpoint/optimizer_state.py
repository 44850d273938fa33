"""Optimizer state keyed by parameter name, so that it fits any number of processes and any way of sharding.

Tensors go through torch.distributed.checkpoint as safetensors under "parameter name/state key", or
"#group index/key" for tensors that a parameter group holds. Everything else is JSON.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_pretraining.errors import UsageError

Groups = list[dict[str, Any]]
_PLAIN = (bool, int, float, str, type(None))


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """The name of every parameter that the optimizer updates."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {parameter: names[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def state_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Every tensor of the optimizer under its flat name; the tensors themselves, not copies.

    Tensors without elements are left out: they stand for what another process holds.
    """
    tensors = {
        f"{name}/{key}": value
        for parameter, name in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and value.numel()
    }
    for index, group in enumerate(optimizer.param_groups):
        tensors |= {f"#{index}/{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    return tensors


def group_values(optimizer: torch.optim.Optimizer) -> Groups:
    """The plain values of every parameter group, as JSON returns them."""
    groups = []
    for group in optimizer.param_groups:
        plain = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        groups.append(_plain({key: value for key, value in plain.items() if not isinstance(value, Tensor)}))
    return groups


def describe(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], constructed: Groups) -> dict[str, Any]:
    """What JSON holds of the optimizer. constructed: `group_values` before the first update."""
    tensors = state_tensors(optimizer, names)
    devices = {tensor.device for tensor in names}
    return {
        "class": type(optimizer).__name__,
        "parameters": [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups],
        "groups": group_values(optimizer),
        "constructed_groups": constructed,
        "values": {
            name: _plain({k: v for k, v in state.items() if not isinstance(v, Tensor)})
            for parameter, name in names.items()
            if (state := optimizer.state.get(parameter))
        },
        "on_cpu": [name for name, tensor in tensors.items() if tensor.device not in devices],
    }


def plan_restore(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    saved: Mapping[str, Any],
    folder: Path,
    elsewhere: Collection[str],
) -> dict[str, Tensor]:
    """The tensors to read the state in `folder` into, by flat name; `saved` is what `describe` gave.

    elsewhere: flat names of the tensors of all processes; some methods keep a parameter's state on one of
    them.

    Tensors that exist are filled in place, so that an engine's own references stay good; those that a library
    creates at its first step are allocated. Raises UsageError where the state is that of another optimizer.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    _check_same_optimizer(optimizer, names, saved)
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata if any(folder.glob("*.safetensors")) else {}
    existing = state_tensors(optimizer, names)
    if missing := sorted(existing.keys() - stored.keys()):
        raise UsageError(f"--continue_from: the checkpoint has no {missing[0]}, which this optimizer keeps")
    parameters = {name: parameter for parameter, name in names.items()}
    targets = {}
    for name, entry in stored.items():
        if name in existing:
            _check_same_format(name, existing[name], entry)
            targets[name] = existing[name]
            continue
        if name in elsewhere:
            continue
        owner = parameters.get(name.rpartition("/")[0])
        if owner is None or optimizer.state.get(owner):
            raise UsageError(f"--continue_from: the checkpoint's {name} means nothing to this optimizer")
        targets[name] = _allocate(entry, owner, on_cpu=name in saved["on_cpu"])
    return targets


def finish_restore(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    saved: Mapping[str, Any],
    filled: Mapping[str, Tensor],
) -> None:
    """Hands the tensors of `plan_restore`, now filled, and the saved plain values to the optimizer."""
    parameters = {name: parameter for parameter, name in names.items()}
    for name in filled.keys() - state_tensors(optimizer, names).keys():
        owner, _, key = name.rpartition("/")
        optimizer.state[parameters[owner]][key] = filled[name]
    for name, values in saved["values"].items():
        if values:
            optimizer.state[parameters[name]].update(values)
    for group, now, initial in zip(optimizer.param_groups, saved["groups"], saved["constructed_groups"], strict=True):
        for key, value in now.items():
            # What updates have changed comes back; what they have not, is as the flags of this run say. The rate of the
            # first construction stays: Online Subspace Descent measures every later one by it.
            if key not in initial or initial[key] != value or key == "base_lr":
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def _check_same_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], saved: Mapping[str, Any]
) -> None:
    if saved["class"] != type(optimizer).__name__:
        raise UsageError(
            f"--optimizer: the checkpoint holds the state of {saved['class']}, this run uses "
            f"{type(optimizer).__name__}; choose the same optimizer, or start a new run"
        )
    ours = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if saved["parameters"] != ours:
        raise UsageError("--continue_from: the checkpoint's optimizer groups the parameters in another way")


def _check_same_format(name: str, tensor: Tensor, entry: Any) -> None:
    if tensor.dtype != entry.properties.dtype or tuple(tensor.shape) != tuple(entry.size):
        raise UsageError(
            f"--continue_from: {name} was saved as {entry.properties.dtype} {tuple(entry.size)}, here it is "
            f"{tensor.dtype} {tuple(tensor.shape)}; use the optimizer's settings of the saved run"
        )


def _allocate(entry: Any, parameter: Tensor, on_cpu: bool) -> Tensor:
    """An empty tensor for stored state: laid out like the parameter if it has its shape, whole otherwise."""
    if tuple(entry.size) == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
    device = torch.device("cpu") if on_cpu else parameter.device
    return torch.empty(entry.size, dtype=entry.properties.dtype, device=device)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        if not _is_plain(value):
            raise TypeError(
                f"optimizer value {key!r} is a {type(value).__name__}: state must be tensors and JSON values"
            )
    return json.loads(json.dumps(values))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return isinstance(value, list | tuple) and all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
