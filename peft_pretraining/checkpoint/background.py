"""Saving while training goes on: the state is copied first, then written by threads."""

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from peft_pretraining.checkpoint.tensors import storage_failures
from peft_pretraining.distributed.world import World


class BackgroundSave:
    """One checkpoint under way: torch.distributed.checkpoint's thread on every process, then `publish` on the main one.

    tensors: the optimizer state by name; copied before the constructor returns, which is a collective.
    """

    def __init__(
        self, update: int, tensors: dict[str, Tensor], path: Path, publish: Callable[[], None] | None, world: World
    ) -> None:
        self.update, self._world, self._publish = update, world, publish
        written = _start(tensors, path, world) if tensors else None
        # The coordinator's future is done when all processes have written, so the main process may go on alone.
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._done = thread.submit(self._finish, written)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Returns when the checkpoint is on the disk. Raises UsageError or OSError if it cannot be written."""
        with self._world.working("writes a checkpoint"):
            self._done.result()

    def _finish(self, written: Future | None) -> None:
        with storage_failures():
            if written is not None:
                written.result()
        if self._publish is not None:
            self._publish()


def _start(tensors: dict[str, Tensor], path: Path, world: World) -> Future:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    # Staging moves tensors to the CPU and leaves those alone that are there already.
    copies = {name: tensor.detach().clone() if tensor.is_cpu else tensor for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        alone = world.world_size == 1
        future = dcp.async_save(copies, storage_writer=writer, process_group=_own_group(world), no_dist=alone)
    assert isinstance(future, Future)
    return future


@cache
def _own_group(world: World) -> Any:
    """A process group for collectives beside those of training; None in one process."""
    return dist.new_group(backend="gloo") if world.world_size > 1 else None
