"""What a run does before it fails, or when it is stopped: it keeps its updates, and says how to go on."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from loguru import logger

from peft_pretraining.distributed.watchdog import PeerLost
from peft_pretraining.errors import AgreedError, RunFailed, UsageError
from peft_pretraining.run_folder.layout import CONFIGURATION, RunFolder
from peft_pretraining.training.step import TrainingStopped
from peft_pretraining.units import GIB

if TYPE_CHECKING:
    from peft_pretraining.training.run import Run


@contextmanager
def saved_if_it_fails(run: "Run") -> Iterator[None]:
    """Saves the updates since the last checkpoint when something fails between two updates.

    Not after a failure inside an update, whose weights may be half changed, and not where one of several processes
    fails alone: the others cannot save without it.
    """
    try:
        yield
    except (TrainingStopped, PeerLost):
        raise
    except Exception as error:
        together = run.world.world_size == 1 or isinstance(error, AgreedError)
        if together and not run.updating and run.progress.update > (run.checkpoints.last_saved or 0):
            _save(run)
        raise


def _save(run: "Run") -> None:
    try:
        run.save()
    except (UsageError, OSError) as error:
        logger.error("{}", error)
        return
    logger.error("the run fails after update {}, which is saved. To go on: {}", run.progress.update, continuation(run))


# Words of what torch's allocator, CUDA itself and cuBLAS say where no memory is left; only the first has a class.
_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def explained_where_memory_ends(device: torch.device, folder: RunFolder) -> Iterator[None]:
    """Has a run that needs more memory than the GPU has end with a message that says what to change: RunFailed."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise RunFailed(
            f"{device} has no memory left{_held(device)}. What needs less: a smaller --batch_size (with "
            "--total_batch_size the update stays as it is), --activation_checkpointing, --per_layer. "
            "python -m peft_pretraining.memory with the same flags predicts the peak. "
            f"{folder.last_good()}. Torch said: {str(error).splitlines()[0]}"
        ) from error


def _held(device: torch.device) -> str:
    """How much of a GPU this process holds."""
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory
    held, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return f" ({held / GIB:.1f} of {total / GIB:.1f} GiB in use at the peak, {reserved / GIB:.1f} GiB reserved)"


def continuation(run: "Run") -> str:
    """The command that goes on with the run, for people to copy."""
    config, processes = run.config, run.world.world_size
    words = ["python", "torchrun_main.py"]
    if processes > 1 or not config.parallel.single_gpu:
        words = ["torchrun", "--standalone", "--nproc_per_node", str(processes), "torchrun_main.py"]
    words += ["--config", str(run.folder.path / CONFIGURATION), "--continue_from", "auto"]
    if config.checkpoint.save_dir is None and config.logging.name is None:
        words += ["--save_dir", str(run.folder.path)]
    if config.optimizer.optimizer_file is not None:
        words += ["--optimizer_file", config.optimizer.optimizer_file]
    return shlex.join(words)
