"""What a run does before it fails, or when it is stopped: it keeps its updates, and says how to go on."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loguru import logger

from peft_pretraining.distributed.watchdog import PeerLost
from peft_pretraining.errors import AgreedError, UsageError
from peft_pretraining.run_folder.layout import CONFIGURATION
from peft_pretraining.training.step import TrainingStopped

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
