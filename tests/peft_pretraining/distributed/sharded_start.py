"""What two processes of test_sharded_start.py do: build a sharded model, draw dropout masks, and say what they got.

torchrun --nproc_per_node 2 -m tests.peft_pretraining.distributed.sharded_start RESULTS.json MODEL.json ...
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from peft_pretraining.checkpoint.rng import prepare_randomness
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.distributed.parallelize import parallelize
from peft_pretraining.distributed.world import World, session
from peft_pretraining.model import llama
from peft_pretraining.model.llama import ModelConfig, build_model, initialise


def main(results: str, *configs: str) -> None:
    parallel = ParallelConfig(parallel="fsdp", device="cpu")
    with session(parallel) as world:
        prepare_randomness(0, False, world.rank)
        found = world.gather_objects([built(config, parallel, world) for config in configs])
        if world.is_main:
            with open(results, "w") as file:
                json.dump(found, file)


def built(config: str, parallel: ParallelConfig, world: World) -> dict[str, Any]:
    """What becomes of a model that is sharded before it has weights, beside the model of one process."""
    one = build_model(ModelConfig(config), "cpu", seed=3)
    model = build_model(ModelConfig(config), "meta", seed=3)
    parallelize(model, parallel, world)
    held: list[int] = []
    fill = llama._fill

    def noted(weight: Tensor, values: Tensor) -> None:
        held.append(sum(p.to_local().numel() for p in model.parameters()))
        fill(weight, values)

    llama._fill = noted
    initialise(model, world.device, seed=3)
    llama._fill = fill
    weights = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    inputs, lengths = torch.arange(24).view(2, 12) + 3, torch.tensor([12, 7])
    return {
        "equal": [torch.equal(weights[name], parameter) for name, parameter in one.named_parameters()],
        "buffers": [torch.equal(a, b) for a, b in zip(model.buffers(), one.buffers(), strict=True)],
        "losses": [float(net(inputs, lengths)) for net in (model, one)],
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "held": max(held),
        "whole": sum(parameter.numel() for parameter in one.parameters()),
        "mask": nn.functional.dropout(torch.ones(32)).tolist(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
