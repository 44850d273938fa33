"""One update of the weights."""

import math
import time
from dataclasses import dataclass
from functools import partial
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

import torch
from loguru import logger
from torch import Tensor
from torch.distributed.tensor import DTensor

from optimizers import Session
from peft_pretraining.distributed.parallelize import set_last_micro_batch
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import RunFailed
from peft_pretraining.training.config import FEWEST_LOSSES
from peft_pretraining.training.timer import Timer

if TYPE_CHECKING:
    from peft_pretraining.checkpoint.progress import Progress
    from peft_pretraining.data import Batch
    from peft_pretraining.training.run import Run


@dataclass(frozen=True)
class StepResult:
    """One update. loss: nats per token over the whole update, before it. grad_norm: before clipping.
    Where gradients travel projected between processes, it is the norm of what travelled: of the projections.

    tokens: real input tokens of all processes. skipped: nothing was changed, because the loss or the norm was
    not finite. bytes_sent: of gradients and bases, by this process. phases: seconds by part of the update,
    without the time between them. details: columns of --log_details, on the main process where they are due.
    """

    update: int
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int
    tokens_seen: int
    skipped: bool
    bytes_sent: int
    seconds: float
    phases: dict[str, float]
    details: dict[str, float]


class TrainingStopped(RunFailed):
    """The run cannot go on; the message says why and which checkpoint is the last good one."""


def train_step(run: "Run") -> StepResult:
    """One update from the next data. A collective; waits for the device after the backward passes and after
    the sum.

    Raises TrainingStopped after more than --max_bad_steps skipped updates in a row.
    """
    clock, started = Timer(run.world.device), time.perf_counter()
    factor = run.schedule(run.progress.update + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    with clock("data"):
        batches = next(run.data).micro_batches
    run.updating = True
    counts = _sum(run, _count_tokens(batches, run.world.device), clock)
    _open_update(run, len(batches), clock)
    sent = run.session.bytes_sent
    loss_sum = _accumulate_gradients(run, batches, counts[0], clock)
    with clock("optimizer"):
        loss, norm = _update_weights(run, loss_sum, clock)
    scored, tokens = counts.tolist()
    seconds = time.perf_counter() - started
    skipped = not (math.isfinite(loss) and (norm is None or math.isfinite(norm)))
    _advance_progress(run.progress, skipped, int(tokens), seconds)
    run.updating = False
    result = StepResult(
        update=run.progress.update,
        loss=loss / max(scored, 1),
        lr=run.config.optimizer.lr * factor,
        grad_norm=norm,
        tokens=int(tokens),
        tokens_seen=run.progress.tokens_seen,
        skipped=skipped,
        bytes_sent=run.session.bytes_sent - sent,
        seconds=seconds,
        phases=clock.read(),
        details={} if run.details is None else run.details.end(),
    )
    _warn_or_stop(run, result)
    return result


def _open_update(run: "Run", micro_batches: int, clock: Timer) -> None:
    """Tells those who take part in the update that it begins."""
    if run.details is not None:
        run.details.begin(run.progress.update + 1)
    run.session.time_messages(partial(clock, "communication"))
    run.session.begin(micro_batches)


def _sum(run: "Run", tensor: Tensor, clock: Timer) -> Tensor:
    """Sums `tensor` over all processes in place. A collective; waiting for the others counts as communication."""
    if run.world.world_size == 1:
        return tensor
    with clock("communication"):
        return run.world.all_reduce(tensor)


def _accumulate_gradients(run: "Run", batches: "list[Batch]", tokens: Tensor, clock: Timer) -> Tensor:
    """Backward passes of this process's micro-batches. Returns its loss sum, 0-D float64, not waited for.

    Each micro-batch is divided by the scored tokens of the whole update, so gradients only have to be added
    up; with --micro_batch_means by its own and the number of micro-batches.
    """
    total = torch.zeros((), dtype=torch.float64, device=run.world.device)
    whole = tokens.clamp_min(1).float()
    means = run.config.training.micro_batch_means
    for index, batch in enumerate(batches):
        # An update inside the backward pass needs the sum of every micro-batch's gradient at once.
        set_last_micro_batch(run.model, last=run.session.in_backward or index == len(batches) - 1)
        with clock("forward"):
            loss = run.model(batch.input_ids, batch.lengths)
        total += loss.detach()
        if run.session.in_backward and not _sum(run, loss.detach().double(), clock).isfinite():
            # The backward pass would change the weights: nothing can be skipped after it.
            continue
        divisor = whole
        if means:
            divisor = (batch.lengths - 1).clamp_min(0).sum().clamp_min(1) * (len(batches) * run.world.world_size)
        with clock("backward"):
            (loss / divisor).backward()
    return total


def _update_weights(run: "Run", loss_sum: Tensor, clock: Timer) -> tuple[float, float | None]:
    """Sums, clips and applies the gradients if all processes have finite ones; also notes a wish to stop.

    Returns the loss summed over processes, and the norm of the summed gradient before clipping: None where
    updates were made in the backward pass and gradients are gone.
    """
    session, world, clipping = run.session, run.world, run.config.training.grad_clipping
    norm = None if session.in_backward else gradient_norm(session, world)
    finite = torch.ones_like(loss_sum) if norm is None else norm.isfinite().to(loss_sum)
    wishes = [torch.full_like(finite, wish) for wish in (run.vote_to_stop(), run.time_to_save())]
    loss, bad, stops, saves = _sum(run, torch.stack([loss_sum, 1 - finite, *wishes]), clock).tolist()
    run.count_votes(stops)
    run.saving_due = saves > 0
    good = math.isfinite(loss) and not bad
    if good and session.replicated and norm is not None:
        world.arrive()
        session.synchronize()
        norm = gradient_norm(session, world)
        good = bool(norm.isfinite())
    if not good:
        session.abandon()
        return loss, None if norm is None else math.nan
    if clipping > 0 and norm is not None:
        clip_gradients(session, norm, clipping)
    session.step()
    return loss, None if norm is None else float(norm)


def gradient_norm(session: Session, world: World) -> Tensor:
    """The global norm of the gradients at hand, 0-D fp32, not waited for; sharded ones are added up over
    processes.

    Sums are fp32 also for bf16 gradients, whose own norms would be rounded to one part in 256.
    """
    gradients = session.gradients()
    norms = torch._foreach_norm([_local(gradient) for gradient in gradients], 2, dtype=torch.float32)
    if not norms:
        return torch.zeros((), device=world.device)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(gradients[0], DTensor):
        norm = world.all_reduce(norm.square()).sqrt()
    return norm


def clip_gradients(session: Session, norm: Tensor, largest: float) -> None:
    """Scales the gradients, whose global norm is `norm`, to a norm of at most `largest`."""
    local = [_local(gradient) for gradient in session.gradients()]
    torch._foreach_mul_(local, (largest / (norm + 1e-6)).clamp(max=1.0))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _count_tokens(batches: "list[Batch]", device: torch.device) -> Tensor:
    """Scored tokens and real input tokens: float64, exact far beyond any batch."""
    lengths = torch.cat([batch.lengths for batch in batches])
    counts = torch.stack([(lengths - 1).clamp_min(0).sum(), lengths.sum()])
    return counts.double().to(device)


def _advance_progress(progress: "Progress", skipped: bool, tokens: int, seconds: float) -> None:
    progress.update += 1
    progress.tokens_seen += tokens
    progress.seconds += seconds
    progress.skipped += skipped
    progress.bad_in_a_row = progress.bad_in_a_row + 1 if skipped else 0


def _warn_or_stop(run: "Run", result: StepResult) -> None:
    """Says what went wrong in an update; ends the run when too many in a row were skipped."""
    config, progress = run.config.training, run.progress
    if result.skipped:
        logger.warning(
            "update {} is skipped: loss {:g}, gradient norm {}; {} skipped so far",
            result.update,
            result.loss,
            result.grad_norm,
            progress.skipped,
        )
        if progress.bad_in_a_row > config.max_bad_steps:
            raise TrainingStopped(
                f"{progress.bad_in_a_row} updates in a row had no finite loss or gradient (--max_bad_steps "
                f"{config.max_bad_steps}). {run.folder.last_good()}; go on with a lower --lr or --skip_batches"
            )
        return
    window = progress.recent_losses
    if len(window) >= FEWEST_LOSSES and (spread := pstdev(window)) > 0:
        score = (result.loss - fmean(window)) / spread
        if score > config.spike_zscore:
            logger.warning(
                "loss spike at update {}: {:.4f} is {:.1f} standard deviations above the last {} updates",
                result.update,
                result.loss,
                score,
                len(window),
            )
    window.append(result.loss)
    del window[: max(0, len(window) - config.spike_window)]
