"""Devices and processes: the session a run happens in, and how a model is shared between its processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn

from peft_pretraining.distributed.rendezvous import meet
from peft_pretraining.distributed.watchdog import Watchdog
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag

Value = TypeVar("Value")


@dataclass(frozen=True)
class ParallelConfig:
    """Which devices a run uses and how they share the work."""

    _argument_group_name: ClassVar[str] = "devices and processes"

    parallel: str = flag(
        "ddp",
        choices=("ddp", "fsdp"),
        help="several processes hold copies of the model (ddp) or shards of it (fsdp: FSDP2 fully_shard)",
    )
    device: str | None = flag(None, help="device type, cpu or cuda (default: cuda where there is one)")
    single_gpu: bool = flag(False, help="one process without a process group; start it with plain python")
    gpu: int | None = flag(None, help="index of the CUDA device of a --single_gpu run (default: 0)")
    dist_timeout: float = flag(
        600.0, help="seconds without progress of any process before the job ends, naming the missing one"
    )

    def __post_init__(self) -> None:
        if self.device is not None and self.device not in ("cpu", "cuda"):
            raise UsageError(f"--device {self.device}: give cpu or cuda (--gpu chooses one of several GPUs)")
        if self.dist_timeout <= 0:
            raise UsageError(f"--dist_timeout {self.dist_timeout}: give a number of seconds above 0")
        if self.single_gpu and self.parallel == "fsdp":
            raise UsageError("--parallel fsdp shards over several processes: leave out --single_gpu, or fsdp")
        if self.gpu is not None and not self.single_gpu:
            raise UsageError(f"--gpu {self.gpu} chooses the device of a --single_gpu run: add --single_gpu")
        if self.gpu is not None and self.gpu < 0:
            raise UsageError(f"--gpu {self.gpu}: give a device index from 0")
        if self.gpu is not None and self.device == "cpu":
            raise UsageError(f"--gpu {self.gpu} contradicts --device cpu: leave one of them out")


class AgreedError(UsageError):
    """A UsageError that every process raises at the same place, so one of them speaks for all."""


@dataclass(frozen=True)
class World:
    """This process among all that share the run. Every method is a collective unless it says otherwise."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    watchdog: Watchdog | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def arrive(self) -> None:
        """Tells the others, without waiting, that this process goes on (see `Watchdog`)."""
        if self.watchdog is not None:
            self.watchdog.arrive()

    def barrier(self) -> None:
        self.gather_objects(None)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all processes in place and returns it."""
        if self.world_size > 1:
            self.arrive()
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        self.arrive()
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Value) -> Value:
        """The value of rank 0, on every process."""
        if self.world_size == 1:
            return value
        self.arrive()
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A body without collectives: where it fails on one process, AgreedError is raised on all of them."""
        failure: UsageError | None = None
        try:
            yield
        except UsageError as error:
            failure = error
        messages = self.gather_objects(None if failure is None else str(failure))
        for rank, message in enumerate(messages):
            if message is not None:
                raise AgreedError(message if rank == 0 else f"process {rank}: {message}") from failure


@contextmanager
def session(config: ParallelConfig) -> Iterator[World]:
    """The processes of the run, joined as torchrun's environment says; without it, this process alone."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if config.single_gpu and processes > 1:
        raise UsageError(f"--single_gpu among {processes} processes: start it with plain python, or leave it out")
    if config.single_gpu or "RANK" not in os.environ:
        yield World(_choose_device(config, config.gpu or 0))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    device = _choose_device(config, local_rank)
    store, rank, world_size = next(
        dist.rendezvous("env://", timeout=timedelta(seconds=config.dist_timeout))  # type: ignore[attr-defined]
    )
    store = meet(store, rank, world_size, config.dist_timeout)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("process_group", store),
        rank=rank,
        world_size=world_size,
        # The watchdog speaks first and names the rank; this is the net below it.
        timeout=timedelta(seconds=10 * config.dist_timeout + 60),
    )
    own = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]
    with Watchdog(own, rank, world_size, config.dist_timeout) as watchdog:
        world = World(device, rank, world_size, local_rank, watchdog)
        yield world
        world.barrier()
    # Only after success: with a peer gone, taking the group down could wait for it for ever.
    dist.destroy_process_group()


def _choose_device(config: ParallelConfig, index: int) -> torch.device:
    if config.device == "cpu" or (config.device is None and config.gpu is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"CUDA device {index} is wanted and {torch.cuda.device_count()} are visible: "
            "start fewer processes, or use --device cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


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
