"""One update of the weights, and the settings of the loop around it."""

import math
import time
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, ClassVar

import torch
from loguru import logger
from torch import Tensor
from torch.distributed.tensor import DTensor

from peft_pretraining.config import TokenCount, flag
from peft_pretraining.errors import UsageError
from peft_pretraining.parallel import World, set_last_micro_batch, sum_gradients
from peft_pretraining.phases import PhaseClock

if TYPE_CHECKING:
    from peft_pretraining.data import Batch
    from peft_pretraining.progress import Progress
    from peft_pretraining.run import Run

_FEWEST_LOSSES = 20  # a mean and a deviation of fewer say little about a spike

_COUNTS = (
    "batch_size",
    "gradient_accumulation",
    "total_batch_size",
    "num_training_steps",
    "max_train_tokens",
    "eval_every",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How much is trained in one update and in the run, and what happens when an update goes wrong."""

    _argument_group_name: ClassVar[str] = "training"

    batch_size: int = flag(16, help="sequences a process works on at once (one micro-batch)")
    gradient_accumulation: int | None = flag(
        None, help="micro-batches a process sums into an update (default: 1)"
    )
    total_batch_size: int | None = flag(
        None,
        help="sequences of an update over all processes (default: batch_size x accumulation x processes)",
    )
    num_training_steps: int = flag(10_000, help="updates of the weights in the run")
    max_train_tokens: TokenCount | None = flag(
        None,
        help="length of the run in tokens instead of updates, as 100M or 1.5B; counts max_length positions a "
        "sequence, padding included",
    )
    grad_clipping: float = flag(0.0, help="largest global norm of the gradient; 0 does not clip")
    eval_every: int = flag(5_000, help="updates between evaluations; the last update is always evaluated")
    evaluation: str = flag(
        "exact",
        choices=("exact", "published"),
        help="exact: sum of losses over tokens; published: the biased mean of the published harness",
    )
    seed: int = flag(0, help="seed of the weights, and of the data order without --data_seed")
    deterministic: bool = flag(
        False, help="deterministic kernels only: the same command gives the same losses"
    )
    max_bad_steps: int = flag(
        10, help="skipped updates in a row, for a non-finite loss or gradient, that a run bears"
    )
    spike_window: int = flag(100, help="updates whose losses a loss spike is judged by; 0 does not look")
    spike_zscore: float = flag(6.0, help="standard deviations above the window's mean that make a loss spike")

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: give at least 1")
        for name in ("grad_clipping", "max_bad_steps", "spike_window", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: give 0 or more")
        if self.spike_zscore <= 0:
            raise UsageError(f"--spike_zscore {self.spike_zscore}: give a number above 0")


@dataclass(frozen=True)
class StepResult:
    """One update. loss: nats a token over the whole update, before it. grad_norm: before clipping.

    tokens: real input tokens of all processes. skipped: nothing was changed, because the loss or the norm was
    not finite. phases: seconds by part of the update, without the time between them.
    """

    update: int
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int
    tokens_seen: int
    skipped: bool
    seconds: float
    phases: dict[str, float]


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and which checkpoint is the last good one."""


def train_step(run: "Run") -> StepResult:
    """One update from the next data. A collective; waits for the device once, after the backward passes.

    Raises TrainingStopped after more than --max_bad_steps skipped updates in a row.
    """
    clock, started = PhaseClock(run.world.device), time.perf_counter()
    factor = run.schedule(run.progress.update + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    with clock("data"):
        batches = next(run.data).micro_batches
    counts = run.world.all_reduce(_count_tokens(batches, run.world.device))
    loss_sum = _accumulate_gradients(run, batches, counts[0], clock)
    with clock("optimizer"):
        sum_gradients(run.optimizer, run.world)
        norm = clip_gradients(run.optimizer, run.config.training.grad_clipping, run.world)
        verdict = run.world.all_reduce(torch.stack([loss_sum, loss_sum.new_tensor(run.stop.requested)]))
        scored, tokens, total, stops, norm = torch.cat([counts, verdict, norm[None].double()]).tolist()
        good = math.isfinite(total) and math.isfinite(norm)
        if good:
            run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    run.stopping = stops > 0
    seconds = time.perf_counter() - started
    _note(run.progress, good, int(tokens), seconds)
    result = StepResult(
        update=run.progress.update,
        loss=total / max(scored, 1),
        lr=run.config.optimizer.lr * factor,
        grad_norm=norm,
        tokens=int(tokens),
        tokens_seen=run.progress.tokens_seen,
        skipped=not good,
        seconds=seconds,
        phases=clock.read(),
    )
    _judge(run, result)
    return result


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float, world: World) -> Tensor:
    """Scales the gradients to a global norm of at most `largest`; 0 leaves them. Returns the norm before.

    The norm is 0-D fp32 and the same on all processes; it is not waited for. Sums are fp32 also for bf16
    gradients, whose own norms would be rounded to one part in 256.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norms = torch._foreach_norm(local, 2, dtype=torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        norm = world.all_reduce(norm.square()).sqrt()
    if largest > 0:
        torch._foreach_mul_(local, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _accumulate_gradients(run: "Run", batches: "list[Batch]", tokens: Tensor, clock: PhaseClock) -> Tensor:
    """Backward passes of this process's micro-batches. Returns its loss sum, 0-D float64, not waited for.

    Each micro-batch is divided by the scored tokens of the whole update, so gradients only have to be added
    up.
    """
    total = torch.zeros((), dtype=torch.float64, device=run.world.device)
    divisor = tokens.clamp_min(1).float()
    for index, batch in enumerate(batches):
        set_last_micro_batch(run.model, last=index == len(batches) - 1)
        with clock("forward"):
            loss = run.model(batch.input_ids, batch.lengths)
        with clock("backward"):
            (loss / divisor).backward()
        total += loss.detach()
    return total


def _count_tokens(batches: "list[Batch]", device: torch.device) -> Tensor:
    """Scored tokens and real input tokens: float64, exact far beyond any batch."""
    lengths = torch.cat([batch.lengths for batch in batches])
    counts = torch.stack([(lengths - 1).clamp_min(0).sum(), lengths.sum()])
    return counts.double().to(device)


def _note(progress: "Progress", good: bool, tokens: int, seconds: float) -> None:
    progress.update += 1
    progress.tokens_seen += tokens
    progress.seconds += seconds
    progress.skipped += not good
    progress.bad_in_a_row = 0 if good else progress.bad_in_a_row + 1


def _judge(run: "Run", result: StepResult) -> None:
    """Says what went wrong in an update; ends the run when too many in a row were skipped."""
    config, progress = run.config.training, run.progress
    if result.skipped:
        logger.warning(
            "update {} is skipped: loss {:g}, gradient norm {:g}; {} skipped so far",
            result.update,
            result.loss,
            result.grad_norm,
            progress.skipped,
        )
        if progress.bad_in_a_row > config.max_bad_steps:
            raise TrainingStopped(
                f"{progress.bad_in_a_row} updates in a row had no finite loss and gradient (--max_bad_steps "
                f"{config.max_bad_steps}). {run.folder.last_good()}; go on with another --lr or --skip_batches"
            )
        return
    window = progress.recent_losses
    if len(window) >= _FEWEST_LOSSES and (spread := pstdev(window)) > 0:
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
