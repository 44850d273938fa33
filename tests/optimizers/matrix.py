"""The matrix method x state format x execution x per-layer x processes: its cells, and the worker that runs them.

    torchrun --nproc_per_node N -m tests.optimizers.matrix CELLS.json RESULTS.json

Every cell trains a tiny LLaMA for a few updates on the same global batches; a result is the flattened weights' distance
from a reference, or the reason of a refusal. The worker takes many cells, because starting processes costs seconds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import optimizers
from optimizers import replicate, synchronize
from optimizers.engine import registry
from peft_pretraining.flags.catalogue import catalogue

UPDATES, BATCH, LENGTH, VOCABULARY = 20, 4, 16, 96
PROJ_TYPES = ("std", "full", "random", "continuous", "continuous_adam8bit")

MORE_VARIANTS = {
    "apollo": ["", "proj=svd"],
    "adamw_snsm": ["", "subset_size=0"],
    "muon": ["", "nesterov=False", "normuon=True coefficients=polar_express"],
    # Sides of 64 have no basis: gradients of 60 tokens leave such a matrix singular, and its null space arbitrary.
    "soap": ["max_precond_dim=32"],
}
"""Settings of methods that change what is computed or sent, where the fields of the method do not tell."""


@dataclass(frozen=True)
class Cell:
    """One combination. parallel: single, ddp or fsdp. micro_batches: backward passes an update and process."""

    method: str
    variant: str = ""
    state_dtype: str = "float32"
    execution: str = "eager"
    per_layer: bool = False
    parallel: str = "single"
    micro_batches: int = 1

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of build_optimizer."""
        fields = registry.get(self.method).defaults()
        small = {"rank": 8, "subset_size": 16}
        arguments: dict[str, Any] = {k: v for k, v in small.items() if k in fields}
        for part in filter(None, self.variant.split()):
            key, value = part.split("=")
            arguments[key] = value_of(value)
        options = dict(state_dtype=self.state_dtype, execution=self.execution, per_layer=self.per_layer)
        return arguments | options


def value_of(text: str) -> Any:
    """A word of a variant as the Python value it names."""
    return json.loads(text.lower()) if text in ("True", "False") or text.isdigit() else text


def variants(method: str) -> list[str]:
    """Settings of a method that change what it computes or what must travel.

    A basis from a refresh is refreshed again only with rotated moments: LAPACK's signs of singular vectors flip on
    the last bit of a gradient, and moments that stay as they are, as published, then belong to the other sign.
    """
    fields = registry.get(method).defaults()
    if "galore_scale" in fields:
        kinds = PROJ_TYPES if method == "galore_adamw" else ("std", "continuous")
        turned = ["proj_type=std rotate_moments=True update_proj_gap=10"] if method == "galore_adamw" else []
        return [f"proj_type={kind}" for kind in kinds] + turned
    if "error_feedback" in fields:
        return ["", "error_feedback=False", "proj_method=svd"]
    return MORE_VARIANTS.get(method, [""])


def engine_methods() -> list[str]:
    """All methods, without a name that only presets another setting of the matrix."""
    shipped = {entry.name for entry in catalogue()}  # another test of this process may have brought a method of its own
    return [m.name for m in registry.methods() if m.name in shipped and not m.presets.get("per_layer")]


def all_cells() -> list[Cell]:
    """The full product."""
    return [
        Cell(method, variant, dtype, execution, per_layer, parallel)
        for method in engine_methods()
        for variant in variants(method)
        for parallel in ("single", "ddp", "fsdp")
        for dtype in ("float32", "bfloat16", "int8")
        for execution in ("eager", "compiled")
        for per_layer in (False, True)
    ]


def model() -> LlamaForCausalLM:
    """A LLaMA of two layers with grouped-query heads; the same weights at every call."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=VOCABULARY)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def learning_rate(method: str) -> float:
    """A step size at which the trajectory moves and rounding is not amplified into chaos."""
    return 1e-4 if "lion" in method else 1e-2 if "sgd" in method else 2e-3


def train(cell: Cell, rank: int = 0, world: int = 1) -> tuple[Tensor, Any]:
    """Weights after the updates, flattened, and the optimizer."""
    net: nn.Module = model()
    if cell.parallel == "fsdp":
        shard(net)
    optimizer = optimizers.build_optimizer(cell.method, net, learning_rate(cell.method), **cell.arguments())
    if cell.parallel == "ddp":
        replicate(optimizer)
    data = torch.Generator().manual_seed(1)
    for _ in range(UPDATES):
        batch = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=data)
        mine = batch.chunk(world)[rank].chunk(cell.micro_batches)
        if getattr(optimizer, "per_layer", False):
            optimizer.begin_update(micro_batches=len(mine))
        for rows in mine:
            (net(input_ids=rows, labels=rows).loss * len(rows) / BATCH).backward()
        if cell.parallel == "ddp" and not getattr(optimizer, "per_layer", False):
            synchronize(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return flatten(net), optimizer


def shard(net: nn.Module) -> None:
    """FSDP2 over all processes, with gradients summed instead of averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*net.model.layers, net]:
        fully_shard(module, mesh=mesh)
    for module in [*net.model.layers, net]:
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
        module.set_gradient_divide_factor(1.0)


def flatten(net: nn.Module) -> Tensor:
    """All weights, whole, in one vector."""
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return torch.cat([p.detach().float().flatten() for p in whole])


def limit(cell: Cell) -> float:
    """The largest deviation that rounding explains.

    Rules in float32 agree to 1e-5, low-rank ones to 1e-4. SOAP's eigenvectors turn by the rounding of a gradient over
    the distance of neighbouring eigenvalues. Where a sign is taken of lifted, nearly cancelling entries, or a state is
    rounded to 8 or 16 bits, the last bit of a gradient decides a few steps of full size.
    """
    fields = registry.get(cell.method).defaults()
    low_rank = "rank" in fields
    if low_rank and "lion" in cell.method:
        return 3e-2
    if cell.state_dtype != "float32":
        return 3e-2
    return 1e-3 if cell.method == "soap" else 1e-4 if low_rank else 1e-5


def judge(cell: Cell, references: dict[Cell, Tensor], rank: int, world: int) -> dict[str, Any]:
    """Run a cell: {"deviation": ...} relative to how far the reference moved, or {"refused": why}."""
    plain = Cell(cell.method, cell.variant, cell.state_dtype)
    try:
        if plain not in references:
            references[plain] = train(plain)[0]
        weights, _ = train(cell, rank, world)
    except ValueError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    start = flatten(model())
    moved = (references[plain] - start).norm()
    return {"deviation": float((weights - references[plain]).norm() / moved)}


def main(cells_file: str, results_file: str) -> None:
    """Run all cells of a file and write the results of rank 0."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    with open(cells_file) as file:
        cells = [Cell(**entry) for entry in json.load(file)]
    references: dict[Cell, Tensor] = {}
    results = []
    for cell in cells:
        alone = cell.parallel == "single"
        results.append({**asdict(cell), **judge(cell, references, 0 if alone else rank, 1 if alone else world)})
        if rank == 0:
            with open(results_file, "w") as file:
                json.dump(results, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
