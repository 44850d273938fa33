"""The story of a run: built or brought back, then update after update, with evaluations and checkpoints."""

from contextlib import closing

from peft_pretraining.distributed.device import announce_device, settle_precision
from peft_pretraining.distributed.world import session
from peft_pretraining.training.evaluation import evaluate
from peft_pretraining.training.logbook import Logbook
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.rescue import continuation, explained_where_memory_ends, saved_if_it_fails
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.step import train_step


def pretrain(config: RunConfig, stop: StopSignals) -> int:
    """Trains as configured. Returns the exit status."""
    settle_precision()
    with (
        session(config.parallel) as world,
        run_folder(config, world) as folder,
        explained_where_memory_ends(world.device, folder),
    ):
        if world.is_main:
            announce_device(world.device, config.parallel.device)
        run = restore_or_start(config, world, stop, folder)
        with Logbook(run) as logbook, closing(run.data), saved_if_it_fails(run):
            if run.evaluation_due:
                logbook.evaluation(evaluate(run))
            for _ in run.remaining_updates():
                logbook.update(train_step(run))
                if run.checkpoint_due:
                    run.save()
                if run.evaluation_due:
                    logbook.evaluation(evaluate(run))
            checkpoint = run.save()
            if run.stopping:
                logbook.stopped(continuation(run))
                return stop.exit_status
            logbook.summarize(checkpoint)
            return 0
