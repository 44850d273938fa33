"""Cross-entropy of a language-model head that never holds the full logits.

A vocabulary of 32,000 makes the logits of 4,096 tokens larger than all other activations of a small LLaMA
together. The loss is a sum over rows, so its gradients can be finished chunk by chunk while the chunk's
logits exist: the forward pass computes the loss and both gradients, the backward pass only scales them.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from optimizers.engine.precision import round_stochastically

CHUNK_ROWS = 256  # 16 MB of bf16 logits at a vocabulary of 32,000; 512 and 1024 were no faster
# oneDNN keeps 10 to 20 MB for every number of rows that a bf16 product of this width has met, up to 1,024 of them:
# without rounding, llama_9m went from 1 to 6 GB within 160 updates.
_GRANULARITY = 64
_SCALED_ROWS = 2048
_SEED = 0x1055  # of the rounding of scaled gradients: the same numbers give the same gradients


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, *, compiled: bool = False) -> Tensor:
    """Sum over rows of the cross-entropy of `hidden @ weight.T` against `labels`, a 0-D fp32 tensor.

    hidden: (rows, features); weight: (vocabulary, features), both of one dtype; labels: (rows,) int64. The
    products run in that dtype, the softmax and the sums in fp32. Zero rows give a zero that still carries
    (zero) gradients. With gradients disabled only the loss is computed. `compiled` runs each chunk through
    `torch.compile`.
    """
    count = len(labels)
    # Rows of zeros: their share of the weight's gradient is zero, their own loss and gradient are left out.
    hidden, labels = pad(hidden, (0, 0, 0, -count % _GRANULARITY)), pad(labels, (0, -count % _GRANULARITY))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels, count, compiled)
    losses_of_chunk = _compiled(_chunk_losses) if compiled else _chunk_losses
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start, rows, targets in _chunks(hidden, labels):
        total += losses_of_chunk(rows, weight, targets)[: count - start].sum()
    return total


def _chunks(*tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """The first row of every chunk, and the chunk of each tensor."""
    for start in range(0, len(tensors[0]), CHUNK_ROWS):
        yield start, *(tensor[start : start + CHUNK_ROWS] for tensor in tensors)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, count: int, compiled: bool) -> Tensor:
        step = _compiled(_chunk_losses_and_gradients) if compiled else _chunk_losses_and_gradients
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # bf16 would lose a chunk's share once the sum of the earlier chunks is 256 times larger
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start, rows, targets, grad_rows in _chunks(hidden, labels, grad_hidden):
            loss += step(rows, weight, targets, grad_rows, grad_weight)[: count - start].sum()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.sums_chunks = weight.dtype, len(labels) > CHUNK_ROWS
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled_weight = _scaled(grad_weight, grad_loss, ctx.weight_dtype, narrow=not ctx.sums_chunks)
        return _scaled(grad_hidden, grad_loss, grad_hidden.dtype, narrow=True), scaled_weight, None, None, None


def _scaled(tensor: Tensor, factor: Tensor, dtype: torch.dtype, narrow: bool) -> Tensor:
    """The product in fp32, in parts, because it makes an fp32 copy before it casts.

    narrow: the numbers have the 8 bits of bf16. 1/255 of such a number is nearly always rounded up, which made the
    body's gradients 0.4% too large with 255 * 2^k tokens; so it is rounded stochastically.
    """
    scaled = torch.empty_like(tensor, dtype=dtype)
    for part, target in zip(tensor.split(_SCALED_ROWS), scaled.split(_SCALED_ROWS), strict=True):
        product = part.float() * factor
        target.copy_(round_stochastically(product, _SEED) if narrow and dtype == torch.bfloat16 else product)
    return scaled


def _chunk_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = hidden @ weight.t()
    return logits.float().logsumexp(dim=-1) - logits.gather(1, labels[:, None])[:, 0].float()


def _chunk_losses_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, grad_hidden: Tensor, grad_weight: Tensor
) -> Tensor:
    """Losses of one chunk's rows; writes its rows of `grad_hidden` and adds its share to `grad_weight` (fp32)."""
    log_probabilities = torch.log_softmax(hidden @ weight.t(), dim=-1, dtype=torch.float32)
    of_labels = log_probabilities.gather(1, labels[:, None])
    # gradient of the loss by the logits: the predicted probabilities, less one at the label
    grad_logits = log_probabilities.exp_().to(hidden.dtype)
    grad_logits.scatter_(1, labels[:, None], of_labels.expm1().to(hidden.dtype))
    grad_hidden.copy_(grad_logits @ weight)
    grad_weight.add_(grad_logits.t() @ hidden)
    return -of_labels[:, 0]


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)
