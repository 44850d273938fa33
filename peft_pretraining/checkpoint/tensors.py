"""Tensors on disk: safetensors files that several processes write and read together, each its own part."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from peft_pretraining.distributed.world import AgreedError, World
from peft_pretraining.errors import UsageError


def write_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    """Writes them by name into the folder. A collective. Raises UsageError for a failure of the file system."""
    import torch.distributed.checkpoint as dcp

    if not tensors:
        return
    with warnings.catch_warnings(), storage_failures():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        writer = _storage()[0](world, str(path), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=world.world_size == 1)


def read_tensors(targets: dict[str, Tensor], path: Path, world: World) -> None:
    """Fills the tensors with those of the same names in the folder. A collective.

    Raises AgreedError with the reason where a process cannot read its part.
    """
    import torch.distributed.checkpoint as dcp

    if not targets:
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            reader = _storage()[1](world, str(path))
            dcp.load(dict(targets), storage_reader=reader, no_dist=world.world_size == 1)
    except _checkpoint_exception() as error:
        rank, reason = first_failure(error)
        raise AgreedError(unusable(path, reason, f"process {rank}: ")) from error


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with another (8-bit code tables do): safetensors refuses them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = getattr(tensor, "_local_tensor", tensor).untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def unusable(path: Path, reason: BaseException, where: str = "") -> str:
    """The message for a checkpoint whose files mean nothing."""
    detail = next(iter(str(reason).strip().splitlines()), "")[:200]
    return f"--continue_from {path}: its content is unusable ({where}{type(reason).__name__}: {detail})"


@contextmanager
def storage_failures() -> Iterator[None]:
    """Turns a failure of the file system on any process into a UsageError that names the process."""
    try:
        yield
    except _checkpoint_exception() as error:
        rank, reason = first_failure(error)
        if not isinstance(reason, OSError | SafetensorError):
            raise
        raise UsageError(f"process {rank}: {reason}") from error


def first_failure(error: Any) -> tuple[int, BaseException]:
    """Rank and cause. A CheckpointException holds the failures of every rank, and is raised on all of them."""
    rank, (reason, _) = next(iter(error.failures.items()))
    return rank, reason


def _checkpoint_exception() -> type[BaseException]:
    from torch.distributed.checkpoint.api import CheckpointException

    return CheckpointException  # it derives from BaseException


@cache
def _storage() -> tuple[type, type]:
    """A writer and a reader that tell the watchdog of their work: minutes for a large model on a slow disk."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

    class Writer(HuggingFaceStorageWriter):
        def __init__(self, world: World, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self._world = world

        def write_data(self, *arguments: Any) -> Any:
            with self._world.working("writes the optimizer state"):
                return super().write_data(*arguments)

    class Reader(HuggingFaceStorageReader):
        def __init__(self, world: World, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._world = world

        def read_data(self, *arguments: Any) -> Any:
            with self._world.working("reads the checkpoint"):
                return super().read_data(*arguments)

    return Writer, Reader
