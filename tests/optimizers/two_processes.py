"""Cases that two processes run together, for test_own_loops.py; each returns what there is to judge.

torchrun --nproc_per_node 2 -m tests.optimizers.two_processes RESULTS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import optimizers
from optimizers import replicate, synchronize
from optimizers.baselines import EngineSGD
from optimizers.galore import ProjectedStep
from tests.optimizers.matrix import BATCH, LENGTH, VOCABULARY, flatten, model, shard

CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def refusal(action: Callable[[], Any]) -> str:
    """The message of the ValueError that the action raises."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def linear(*, wrapped: bool, replicated: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Linear(4, 4, bias=False)
    optimizer = optimizers.AdamWSN([{"params": [net.weight], "sn": True}], lr=0.1, per_layer=True)
    optimizer.begin_update()
    if replicated:
        replicate(optimizer)
    return DistributedDataParallel(net) if wrapped else net, optimizer


@case
def per_layer_under_ddp() -> str:
    net, _ = linear(wrapped=True, replicated=False)
    return refusal(lambda: net(torch.ones(2, 4)).sum().backward())


@case
def per_layer_under_ddp_and_replicated() -> str:
    net, optimizer = linear(wrapped=True, replicated=True)
    net(torch.ones(2, 4)).sum().backward()
    return refusal(optimizer.step)


@case
def non_finite_shard() -> dict[str, Any]:
    """A NaN in the second process's shard, at the second update; the third must be an ordinary one."""
    groups = {
        "ldadam": (optimizers.LDAdamW, {"enable_lowrank": True, "rank": 4}),
        "continuous": (optimizers.GaLoreAdamW, {"rank": 4, "proj_type": "continuous"}),
        "galore": (optimizers.GaLoreAdamW, {"rank": 4}),
    }
    results = {}
    for name, (kind, settings) in groups.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False))
        fully(net)
        optimizer = kind([{"params": list(net.parameters()), **settings}], lr=1e-2)
        weight = net[0].weight
        for update in range(3):
            torch.manual_seed(update)
            net(torch.randn(4, 16)).square().mean().backward()
            if update == 1 and dist.get_rank() == 1:
                weight.grad.to_local()[0, 0] = float("nan")
            optimizer.step()
            optimizer.zero_grad()
            if update == 0:
                before = weight.full_tensor().clone()
        results[name] = {
            "updates": [int(optimizer.state[p]["step"]) for p in net.parameters()],
            "finite": [bool(p.full_tensor().isfinite().all()) for p in net.parameters()],
            "moved": not torch.equal(before, weight.full_tensor()),
        }
    return results


def fully(net: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))


@case
def missing_gradients() -> dict[str, list[float]]:
    """The first process has no gradient of `right`, no process has one of `idle`; the loss sums both processes'."""
    results = {}
    for name in ("sgd", "torch"):
        left, right, idle = (nn.Parameter(torch.ones(4, 4)) for _ in range(3))
        made = torch.optim.SGD if name == "torch" else EngineSGD
        optimizer = made([left, right, idle], lr=0.5)
        rank = dist.get_rank()
        loss = (rank + 1.0) * left.sum()
        (loss + right.sum() if rank else loss).backward()
        synchronize(optimizer)
        optimizer.step()
        results[name] = [float(p[0, 0]) for p in (left, right, idle)]
    return results


@case
def refreshes_at_the_same_time() -> dict[str, Any]:
    """Seconds in which eight bases are computed, each of which takes 0.2 s in which a processor is free."""
    ordinary = ProjectedStep.refresh

    def slow(self: ProjectedStep, *arguments: Any) -> bool:
        time.sleep(0.2)
        return ordinary(self, *arguments)

    ProjectedStep.refresh = slow  # type: ignore[method-assign]
    results = {}
    for parallel in ("ddp", "fsdp"):
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(8)))
        if parallel == "fsdp":
            fully(net)
        optimizer = optimizers.GaLoreAdamW([{"params": list(net.parameters()), "rank": 4}], lr=1e-2)
        signs: list[int] = []
        optimizer.shared.progress = lambda signs=signs: signs.append(1)
        if parallel == "ddp":
            replicate(optimizer)
        net(torch.ones(2, 16)).square().sum().backward()
        dist.barrier()
        started = time.perf_counter()
        if parallel == "ddp":
            synchronize(optimizer)
        optimizer.step()
        results[parallel] = {"seconds": time.perf_counter() - started, "signs": len(signs)}
    ProjectedStep.refresh = ordinary  # type: ignore[method-assign]
    return results


@case
def clipped_per_layer() -> dict[str, float]:
    """How far layouts part from one process and one micro-batch, over the distance moved, at a limit that binds."""
    results = {}
    for method, more in (("galore_adamw", {"rank": 8, "rotate_moments": True}), ("adamw_sn", {})):
        reference = _clipped(method, more, "single", 1)
        moved = (reference - flatten(model())).norm()
        for parallel, parts in (("single", 2), ("ddp", 1), ("ddp", 2), ("fsdp", 1), ("fsdp", 2)):
            if parts == 1 or method == "galore_adamw":
                deviation = (_clipped(method, more, parallel, parts) - reference).norm() / moved
                results[f"{method} {parallel} {parts}"] = float(deviation)
    return results


def _clipped(method: str, more: dict[str, Any], parallel: str, micro_batches: int) -> Tensor:
    net = model()
    if parallel == "fsdp":
        shard(net)
    optimizer = optimizers.build_optimizer(method, net, 2e-3, per_layer=True, **more)
    if parallel == "ddp":
        replicate(optimizer)
    elif parallel == "single":
        replicate(optimizer, _alone())
    rank, world = (0, 1) if parallel == "single" else (dist.get_rank(), 2)
    data = torch.Generator().manual_seed(1)
    for update in range(6):
        batch = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=data)
        # A basis comes from the first micro-batch where there are several, so the first update is one of one.
        parts = batch.chunk(world)[rank].chunk(micro_batches if update else 1)
        optimizer.begin_update(len(parts), max_norm=0.02)
        for rows in parts:
            (net(input_ids=rows, labels=rows).loss * len(rows) / BATCH).backward()
        optimizer.step()
    return flatten(net)


_GROUPS: list[Any] = []


def _alone() -> Any:
    """A group of this process alone."""
    if not _GROUPS:
        _GROUPS.extend(dist.new_group([rank]) for rank in range(2))
    return _GROUPS[dist.get_rank()]


def main(results_file: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    results = {name: run() for name, run in CASES.items()}
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        with open(results_file, "w") as file:
            json.dump(gathered, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
