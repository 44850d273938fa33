"""Pretrains a LLaMA, in one process (`python torchrun_main.py --single_gpu ...`) or in several (torchrun).

Exit status: 0 when the run is done, 2 for a mistake in the command line or its files, 75 when SIGTERM or
SIGUSR1 ended it after a checkpoint, 130 when Ctrl-C did, 1 for a failure. After 75 and 130 the same command
with --continue_from auto goes on.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import closing

from loguru import logger

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.data import DataError
from peft_pretraining.distributed.watchdog import PeerLost
from peft_pretraining.distributed.world import AgreedError, session
from peft_pretraining.errors import UsageError
from peft_pretraining.training.evaluation import evaluate
from peft_pretraining.training.logbook import Logbook, configure_logging
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.step import TrainingStopped, train_step


def pretrain(config: RunConfig, stop: StopSignals) -> int:
    """Trains as configured. Returns the exit status."""
    with session(config.parallel) as world, run_folder(config, world) as folder:
        run = restore_or_start(config, world, stop, folder)
        with Logbook(run) as logbook, closing(run.data):
            if run.evaluation_due:
                logbook.evaluation(evaluate(run))
            for _ in run.remaining_updates():
                logbook.update(train_step(run))
                if run.evaluation_due:
                    logbook.evaluation(evaluate(run))
                if run.checkpoint_due:
                    run.save()
            if run.stopping:
                return stop.exit_status
            logbook.summarize(run.save())
            return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; says mistakes and known failures in one message, without a traceback."""
    rank, config = int(os.environ.get("RANK", "0")), None
    configure_logging(rank, processes=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with StopSignals() as stop:
            config = parse_config(argv)
            return pretrain(config, stop)
    except UsageError as error:
        # A mistake that all processes see is reported once.
        if rank == 0 or not (config is None or isinstance(error, AgreedError)):
            logger.error("{}", error)
        return 2
    except (TrainingStopped, PeerLost, DataError) as error:
        logger.error("{}", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
