"""Seconds of a refresh of all bases: one process, and two that share the work as replicas and as shards.

    python -m benchmarks.refresh [--size 512] [--matrices 8] [--repeats 3]

Every measurement is the first update of GaLore over square matrices (a full SVD each), one thread a process; the best
of the repeats counts. Beside the seconds that pass stand those of the processor, of the process that used most: on a
busy machine only these can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import optimizers
from benchmarks.common import ROOT, write_result
from optimizers import replicate, synchronize


def seconds(parallel: str, size: int, matrices: int) -> tuple[float, float]:
    """Of the sum over processes and the update in which every basis is due: passed, and of the processor."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(matrices)))
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = optimizers.GaLoreAdamW([{"params": list(net.parameters()), "rank": size // 4}], lr=1e-3)
    if parallel == "ddp":
        replicate(optimizer)
    net(torch.randn(4, size)).square().sum().backward()
    if parallel != "single":
        dist.barrier()
    started, used = time.perf_counter(), time.process_time()
    if parallel == "ddp":
        synchronize(optimizer)
    optimizer.step()
    most = torch.tensor(time.process_time() - used)
    if parallel != "single":
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return time.perf_counter() - started, float(most)


def measure(parallel: str, size: int, matrices: int, repeats: int) -> list[float]:
    """The best of several measurements in processes of their own, of either kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        launch = [] if parallel == "single" else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *launch, "-m", "benchmarks.refresh", "--worker", parallel, "--file", str(file)]
        command += ["--size", str(size), "--matrices", str(matrices), "--repeats", str(repeats)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        return [min(kind) for kind in zip(*json.loads(file.read_text()), strict=True)]


def work(parallel: str, size: int, matrices: int, repeats: int, file: Path) -> None:
    """What a process that measures does."""
    if parallel != "single":
        dist.init_process_group("gloo")
    found = [seconds(parallel, size, matrices) for _ in range(repeats)]
    if parallel == "single" or dist.get_rank() == 0:
        file.write_text(json.dumps(found))
    if parallel != "single":
        dist.destroy_process_group()


def main() -> None:
    """Measure, print, and write benchmarks/results/refresh.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="rows and columns of a matrix")
    parser.add_argument("--matrices", type=int, default=8, help="number of matrices")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--worker", choices=("single", "ddp", "fsdp"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (given.size, given.matrices, given.repeats)
    if given.worker:
        work(given.worker, *sizes, given.file)
        return
    result = {kind: measure(kind, *sizes) for kind in ("single", "ddp", "fsdp")}
    for kind, (passed, used) in result.items():
        share = f", {used / result['single'][1]:.2f} of one process"
        print(f"{kind:>6}: {passed:.3f} s, {used:.3f} s of the processor" + (share if kind != "single" else ""))
    write_result("refresh", {"size": given.size, "matrices": given.matrices, "seconds": result})


if __name__ == "__main__":
    main()
