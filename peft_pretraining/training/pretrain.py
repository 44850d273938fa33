"""The story of a run: built or brought back, then update after update, with evaluations and checkpoints."""

from contextlib import closing

from peft_pretraining.distributed.world import session
from peft_pretraining.training.evaluation import evaluate
from peft_pretraining.training.logbook import Logbook
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.step import train_step


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
