"""Evaluation: the loss of a fixed set of tokens, the same for every batch size and number of processes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_pretraining.parallel import World, is_sharded

if TYPE_CHECKING:
    from peft_pretraining.data import Batch
    from peft_pretraining.run import Run


@dataclass(frozen=True)
class Evaluation:
    """loss: nats a token. tokens: scored ones, of all processes. bits_per_byte: of their text in UTF-8."""

    loss: float
    tokens: int
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(run: "Run") -> Evaluation | None:
    """Evaluates the run's model on its fixed tokens. A collective.

    Returns None, and has the run stop, if a process was asked to stop meanwhile.
    """
    result = evaluate_batches(
        run.model,
        run.data.evaluation_batches(run.config.training.batch_size),
        run.world,
        published=run.config.training.evaluation == "published",
        abandon=lambda: run.stop.requested,
    )
    run.stopping = run.stopping or result is None
    return result


@torch.no_grad()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable["Batch"],
    world: World,
    published: bool = False,
    abandon: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates this process's share of the batches in eval mode. A collective.

    published: the figure of the published harness instead: the sum of the batch means divided by one batch
    too many on every process, averaged over processes. It is too low, the more so with few batches. Returns
    None if `abandon` was true on any process between two batches.
    """
    training, sharded = model.training, is_sharded(model)
    model.eval()
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    share = iter(batches)
    try:
        while True:
            batch = next(share, None)
            left, abandoned = _count(batch is not None, abandon(), world)
            if abandoned:
                return None
            if not left:
                break
            if batch is not None:
                sums += _sums(model, batch, world)
            elif sharded:
                # The forward pass is a collective: who has run out computes along until all have.
                model(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2]))
    finally:
        model.train(training)
    published_loss = sums[3] / (sums[4] + 1) / world.world_size
    loss, tokens, size, biased = world.all_reduce(torch.stack([*sums[:3], published_loss])).tolist()
    exact = loss / max(tokens, 1)
    return Evaluation(biased if published else exact, int(tokens), loss / math.log(2) / max(size, 1))


def _count(has_batch: bool, abandons: bool, world: World) -> tuple[float, float]:
    """How many processes have a batch left, and how many want to stop."""
    if world.world_size == 1:
        return has_batch, abandons
    counts = torch.tensor([has_batch, abandons], dtype=torch.float32, device=world.device)
    left, abandoned = world.all_reduce(counts).tolist()
    return left, abandoned


def _sums(model: nn.Module, batch: "Batch", world: World) -> Tensor:
    """Summed loss, scored tokens, bytes, mean loss of the batch, and 1: float64 on the device."""
    loss = model(batch.input_ids, batch.lengths).double()
    tokens = int((batch.lengths - 1).clamp_min(0).sum())
    rest = torch.tensor([tokens, int(batch.bytes.sum())], dtype=torch.float64, device=world.device)
    return torch.cat([loss[None], rest, (loss / max(tokens, 1))[None], torch.ones_like(rest[:1])])
