"""Devices and processes: the session a run happens in, and what its processes do together."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.distributed.rendezvous import rendezvous
from peft_pretraining.distributed.watchdog import Watchdog
from peft_pretraining.errors import AgreedError, UsageError

Value = TypeVar("Value")


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

    def working(self, work: str) -> AbstractContextManager[None]:
        """Around minutes of work without collectives: not one itself, it keeps the others waiting (see `Watchdog`)."""
        return nullcontext() if self.watchdog is None else self.watchdog.working(work)

    def on_main(self, make: Callable[[], Value], work: str) -> Value:
        """What rank 0 makes, on every process; AgreedError on all of them where it meets a UsageError.

        work: what rank 0 does meanwhile, as in "rank 0 still ...", for however long it takes.
        """
        made: Any = None
        with self.together():
            if self.is_main:
                with self.working(work):
                    made = make()
        return cast(Value, self.from_main(made))

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
    store = rendezvous(store, rank, world_size, config.dist_timeout)
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
