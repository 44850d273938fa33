"""A run: everything that belongs to one pretraining job, built anew or brought back from a checkpoint."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from loguru import logger

from optimizers import Session, build_optimizer, session
from peft_pretraining.atomic_write import write_atomically
from peft_pretraining.checkpoint.find import choose_folder, find_checkpoint
from peft_pretraining.checkpoint.optimizer_state import group_values, parameter_names
from peft_pretraining.checkpoint.progress import Progress
from peft_pretraining.checkpoint.rng import prepare_randomness
from peft_pretraining.checkpoint.state import TrainingState
from peft_pretraining.checkpoint.store import Checkpoints
from peft_pretraining.data import TrainingData, build_data
from peft_pretraining.distributed.parallelize import parallelize, shards
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import UsageError
from peft_pretraining.model.llama import PretrainingLlama, build_model, initialise
from peft_pretraining.run_folder.layout import CONFIGURATION, RunFolder, locked
from peft_pretraining.training.extending import say_how_lr_moves
from peft_pretraining.training.layer_stats import Details, warn_of_gaps
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.schedule import Schedule, build_schedule


@dataclass
class Run:
    """What training and evaluation work on.

    state: what updates change. session: how the loop talks to the optimizer. details: of the main process, where they
    are asked for. stopping: whether all processes have agreed to stop after the current update. saving_due: whether
    they have agreed that it is time for a checkpoint. updating: whether an update is under way, so that weights may be
    half changed. saved_at: when this process last saved, by time.monotonic().
    """

    config: RunConfig
    world: World
    stop: StopSignals
    folder: RunFolder
    state: TrainingState
    session: Session
    schedule: Schedule
    checkpoints: Checkpoints
    details: Details | None = None
    stopping: bool = False
    saving_due: bool = False
    updating: bool = False
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> PretrainingLlama:
        return self.state.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.state.optimizer

    @property
    def data(self) -> TrainingData:
        return self.state.data

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def updates(self) -> int:
        """Updates of the run: all of the schedule's, or fewer with --stop_at."""
        stop_at = self.config.training.stop_at
        return self.schedule.updates if stop_at is None else min(stop_at, self.schedule.updates)

    def remaining_updates(self) -> Iterator[int]:
        """The updates still to do, counted from 1."""
        while self.progress.update < self.updates and not self.stopping:
            yield self.progress.update + 1

    def due(self, every: int) -> bool:
        """Whether something that happens `every` updates, and after the last one, happens now."""
        update = self.progress.update
        return update > 0 and (update % every == 0 or update == self.updates)

    @property
    def evaluation_due(self) -> bool:
        every = self.config.training.eval_every
        assert every is not None  # resolved by the command line
        return self.due(every) and self.progress.evaluated_at != self.progress.update

    @property
    def checkpoint_due(self) -> bool:
        every = self.config.checkpoint.save_every.updates
        last = self.progress.update == self.updates
        return self.stopping or last or (self.saving_due if every is None else self.due(every))

    def time_to_save(self) -> bool:
        """Whether the main process's clock says so, where checkpoints are a matter of time; False elsewhere."""
        seconds = self.config.checkpoint.save_every.seconds
        return self.world.is_main and seconds is not None and time.monotonic() - self.saved_at >= seconds

    def save(self) -> Path:
        """Writes a checkpoint of the current update. A collective. Raises UsageError where it cannot be written."""
        path = self.checkpoints.save(self.state, last=self.stopping or self.progress.update >= self.updates)
        self.saved_at, self.saving_due = time.monotonic(), False
        return path

    def vote_to_stop(self) -> bool:
        """Whether this process was asked to stop. The one place that looks at its signals."""
        return self.stop.requested

    def count_votes(self, votes: float) -> None:
        """Takes note of how many processes were asked to stop, once all of them know: one is enough."""
        self.stopping = self.stopping or votes > 0


@contextmanager
def run_folder(config: RunConfig, world: World) -> Iterator[RunFolder]:
    """The run's folder, locked against other runs by the main process."""
    folder = RunFolder(world.from_main(choose_folder(config.checkpoint, config.logging.name)))
    with ExitStack() as stack:
        with world.together():
            if world.is_main:
                stack.enter_context(locked(folder.path, fresh=config.checkpoint.continue_from is None))
        yield folder


def restore_or_start(config: RunConfig, world: World, stop: StopSignals, folder: RunFolder) -> Run:
    """Builds the run, and brings it to where the checkpoint it continues from was. A collective.

    Raises UsageError for flags that do not fit together and for a checkpoint of another run.
    """
    source = _find(config, world, folder)
    prepare_randomness(config.training.seed, config.training.deterministic, world.rank)
    run = _build(config, world, stop, folder)
    if source is not None:
        saved = run.checkpoints.load(run.state, source)
        logger.info("continuing from {}, update {} of {}", source, run.progress.update, run.updates)
        say_how_lr_moves(saved, config, run.progress.update)
    with world.together(), world.working("prepares the data"):
        # Before the folder says that there is a run: what the data lacks is found now, and nothing is lost.
        run.data.prepare()
    with world.together():
        if world.is_main:
            _settle_in(run)
    if world.is_main and config.logging.log_details:
        run.details = _watch(run)
    return run


def _watch(run: Run) -> Details:
    warn_of_gaps(run.session, run.config.training.gradient_accumulation or 1)
    return Details(run.optimizer, run.state.names, run.config.logging.details_every)


def _find(config: RunConfig, world: World, folder: RunFolder) -> Path | None:
    return world.on_main(lambda: find_checkpoint(config.checkpoint, folder), "looks for a valid checkpoint")


def _build(config: RunConfig, world: World, stop: StopSignals, folder: RunFolder) -> Run:
    training = config.training
    with world.together():
        # Shards are made of a model without memory: no process ever holds all weights.
        sharded = shards(config.parallel, world)
        model = build_model(config.model, "meta" if sharded else world.device, training.seed)
    assert training.total_batch_size is not None
    data = build_data(
        config.data,
        vocab_size=model.config.vocab_size,
        batch_size=training.batch_size,
        global_batch=training.total_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        processes=world,
        seed=training.seed,
        positions=model.config.max_position_embeddings,
    )
    if config.data.document_mask:
        if config.model.use_hf_model:
            raise UsageError("--document_mask does not work with --use_hf_model: leave one of them out")
        model.document_end = data.tokenizer.eos_token_id
    parallelize(model, config.parallel, world)
    if sharded:
        initialise(model, world.device, training.seed, config.model.init_from)
    with world.together():
        optimizer = _build_optimizer(config, model)
        updates = _begin_session(config, optimizer, world)
    return Run(
        config=config,
        world=world,
        stop=stop,
        folder=folder,
        state=TrainingState(model, optimizer, parameter_names(model, optimizer), group_values(optimizer), data),
        session=updates,
        schedule=build_schedule(config.schedule, training.num_training_steps),
        checkpoints=Checkpoints(folder, world, config.checkpoint, config.to_dict()),
    )


def _build_optimizer(config: RunConfig, model: PretrainingLlama) -> torch.optim.Optimizer:
    chosen = config.optimizer
    try:
        optimizer = build_optimizer(chosen.optimizer, model, chosen.lr, **chosen.arguments())
    except (ValueError, ImportError) as error:
        raise UsageError(f"--optimizer {chosen.optimizer}: {error}") from error
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def _begin_session(config: RunConfig, optimizer: torch.optim.Optimizer, world: World) -> Session:
    """How the loop talks to the optimizer; refuses what the optimizer cannot accumulate or clip."""
    clipping = config.training.grad_clipping
    try:
        updates = session(
            optimizer,
            max_norm=clipping,
            micro_batches=config.training.gradient_accumulation or 1,
            replicas=world.world_size > 1 and not shards(config.parallel, world),
            checks_gradients=True,  # an update with a non-finite norm is skipped
        )
    except ValueError as error:
        raise UsageError(f"--optimizer {config.optimizer.optimizer}: {error}") from error
    if updates.in_backward and clipping > 0:
        logger.info("--grad_clipping {} limits the norm of each parameter", clipping)
    updates.report_progress(world.arrive)
    return updates


def _settle_in(run: Run) -> None:
    """Leaves in the folder what this run is, and nothing of a run that went further and is not continued."""
    run.folder.set_aside_after(run.progress.update)
    path = run.folder.path / CONFIGURATION
    try:
        write_atomically(path, json.dumps(run.config.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--save_dir {run.folder.path}: the run folder cannot be written ({error})") from error
