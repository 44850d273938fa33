"""Evaluation: the loss of a fixed set of tokens, the same for every batch size and number of processes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_pretraining.distributed.world import World

if TYPE_CHECKING:
    from peft_pretraining.data import Batch
    from peft_pretraining.training.run import Run


@dataclass(frozen=True)
class Evaluation:
    """loss: nats per token. tokens: scored ones, of all processes. bits_per_byte: of their text in UTF-8.

    published: whether the loss carries the bias of the published harness.
    """

    loss: float
    tokens: int
    bits_per_byte: float
    published: bool = False

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def columns(self) -> dict[str, Any]:
        """As they stand in metrics.jsonl and summary.json."""
        columns = {
            "eval_loss": self.loss,
            "eval_perplexity": self.perplexity,
            "eval_tokens": self.tokens,
            "eval_bits_per_byte": self.bits_per_byte,
        }
        return columns | ({"eval_published": True} if self.published else {})


def evaluate(run: "Run") -> Evaluation | None:
    """Evaluates the run's model on its fixed tokens, and notes the result in the run's progress. A collective.

    Returns None, and has the run stop, if a process was asked to stop meanwhile.
    """
    published = run.config.training.evaluation == "published"
    result = evaluate_batches(
        run.model,
        run.data.evaluation_batches(run.config.training.batch_size),
        run.world,
        published=published,
        abandon=run.vote_to_stop,
    )
    if result is None:
        run.count_votes(1)
        return None
    progress = run.progress
    progress.evaluated_at = progress.update
    progress.evaluation = {"update_step": progress.update, **result.columns()}
    return result


@torch.no_grad()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable["Batch"],
    world: World,
    published: bool = False,
    abandon: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates this process's batches, as many on every process, in eval mode. A collective.

    published: the figure of the published harness instead: the sum of the batch means divided by one batch
    too many on every process, averaged over processes. It is too low, the more so with few batches. Returns
    None if `abandon` was true on any process between two batches.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    try:
        for batch in batches:
            if _anyone(abandon(), world):
                return None
            sums += _sums(model, batch, world)
    finally:
        model.train(training)
    published_loss = sums[3] / (sums[4] + 1) / world.world_size
    loss, tokens, size, biased = world.all_reduce(torch.stack([*sums[:3], published_loss])).tolist()
    exact = loss / max(tokens, 1)
    return Evaluation(biased if published else exact, int(tokens), loss / math.log(2) / max(size, 1), published)


def _anyone(wants: bool, world: World) -> bool:
    if world.world_size == 1:
        return wants
    return world.all_reduce(torch.tensor(float(wants), device=world.device)).item() > 0


def _sums(model: nn.Module, batch: "Batch", world: World) -> Tensor:
    """Summed loss, scored tokens, bytes, mean loss, and 1 if any token is scored: float64, on the device."""
    loss = model(batch.input_ids, batch.lengths).double()
    tokens = int((batch.lengths - 1).clamp_min(0).sum())
    counts = [tokens, int(batch.bytes.sum()), 1 / max(tokens, 1), tokens > 0]
    rest = torch.tensor(counts, dtype=torch.float64, device=world.device)
    return torch.stack([loss, rest[0], rest[1], loss * rest[2], rest[3]])
