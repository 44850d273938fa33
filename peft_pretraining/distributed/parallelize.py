"""How a model is shared between the processes of a run: as copies, or as shards."""

import torch
import torch.distributed as dist
from loguru import logger
from torch import nn

from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.distributed.world import World


def shards(config: ParallelConfig, world: World) -> bool:
    """Whether every process holds a shard of each weight."""
    return world.world_size > 1 and config.parallel == "fsdp"


def parallelize(model: nn.Module, config: ParallelConfig, world: World) -> nn.Module:
    """Gives every process the weights of rank 0, or shards the model, which may be on the meta device. Returns it."""
    if world.world_size == 1:
        return model
    world.arrive()
    if shards(config, world):
        _shard(model, world)
        return model
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, src=0)
    return model


def _shard(model: nn.Module, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    mesh = init_device_mesh(world.device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in list(model.modules()):
        if isinstance(module, LlamaDecoderLayer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the tokens of all processes, so gradients add up undivided.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply within a reduction
    logger.info("the model is sharded over {} processes", world.world_size)


def set_last_micro_batch(model: nn.Module, last: bool) -> None:
    """Lets sharded models reduce gradients only in the backward pass of an update's last micro-batch."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
