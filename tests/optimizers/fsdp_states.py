"""Run by two processes: optimizer state dicts of torch.distributed.checkpoint under FSDP2, against a straight run."""

from __future__ import annotations

import datetime
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

import optimizers
from tests.optimizers.models import loss_of, tiny_llama

METHODS: dict[str, dict[str, Any]] = {
    "galore_adamw": {"rank": 8, "update_proj_gap": 2},
    "galore_adafactor": {"rank": 8},
    "ldadamw": {"rank": 8, "state_dtype": "bfloat16"},
    "galore_adamw8bit": {"rank": 48},
    "adamw_sn": {"state_dtype": "int8"},
}


def made(name: str) -> tuple[Any, Any]:
    model = tiny_llama()
    fully_shard(model)
    return model, optimizers.build_optimizer(name, model, 1e-3, **METHODS[name])


def train(model: Any, optimizer: Any, first: int, last: int) -> None:
    for update in range(first, last):
        loss_of(model, update).backward()
        optimizer.step()
        optimizer.zero_grad()


def restored(name: str, source: Any, states: Any, options: StateDictOptions) -> tuple[Any, Any]:
    model, optimizer = made(name)
    set_optimizer_state_dict(model, optimizer, states, options=options)
    model.load_state_dict(source.state_dict())
    return model, optimizer


def through_files(name: str, model: Any, optimizer: Any, options: StateDictOptions) -> Any:
    """Saved as shards by all processes, and read into what a fresh optimizer says that it has."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    dcp.save(get_optimizer_state_dict(model, optimizer, options=options), checkpoint_id=folder[0])
    other, fresh = made(name)
    states = get_optimizer_state_dict(other, fresh, options=options)
    dcp.load(states, checkpoint_id=folder[0])
    return states


def check(name: str) -> None:
    model, optimizer = made(name)
    train(model, optimizer, 0, 3)
    full, flat = StateDictOptions(full_state_dict=True), StateDictOptions(flatten_optimizer_state_dict=True)
    whole = get_optimizer_state_dict(model, optimizer, options=full)
    single = tiny_llama()
    alone = optimizers.build_optimizer(name, single, 1e-3, **METHODS[name])
    for param, entry in alone.state.items():
        path = next(n for n, p in single.named_parameters() if p is param)
        assert {k: tuple(t.shape) for k, t in whole["state"][path].items()} == {
            k: tuple(t.shape) for k, t in entry.items()
        }, path
    copies = [restored(name, model, whole, full)]
    copies.append(restored(name, model, through_files(name, model, optimizer, StateDictOptions()), StateDictOptions()))
    copies.append(restored(name, model, through_files(name, model, optimizer, flat), flat))
    start = [p.full_tensor() for p in model.parameters()]
    train(model, optimizer, 3, 6)
    straight = [p.full_tensor() for p in model.parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(start, straight, strict=True))
    for other, again in copies:
        train(other, again, 3, 6)
        for (path, param), want in zip(other.named_parameters(), straight, strict=True):
            assert torch.equal(param.full_tensor(), want), (name, path)


def check_refusal() -> None:
    """One process is given a damaged state; both must raise, and neither may wait for the other."""
    model, optimizer = made("galore_adamw")
    states = optimizer.state_dict()
    if dist.get_rank() == 1:
        states["state"][2].pop("exp_avg")
        states["state"][3].pop("step")
    try:
        optimizer.load_state_dict(states)
    except ValueError as error:
        assert "process 1" in str(error) or dist.get_rank() == 1, error
    else:
        raise AssertionError("loaded a damaged state")


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    for method in METHODS:
        check(method)
    check_refusal()
    print("all hold", flush=True)
    dist.destroy_process_group()
