"""Causal attention of right-padded rows, as a function that transformers' LLaMA can call."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from peft_pretraining.model.padding import collect, spread

ATTENTION = "causal_without_padding"
_SHORT = 512  # up to this length, matrix products of whole rows beat torch's blockwise CPU kernel


def _causal_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    origin: Tensor | None = None,
    batch_shape: tuple[int, int] = (1, 1),
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query, key, value (1, heads, tokens, head size) to (1, tokens,
    ...).

    The tokens are spread to their rows, `batch_shape`, for the attention itself. No real token attends to
    the zeros there, and the outputs at padded positions are dropped, so that no gradient comes from them.
    """
    assert origin is not None
    # compiled for a CPU, the products and one fused softmax take half the time of torch's kernel; eager, twice
    if torch.compiler.is_compiling() and query.device.type == "cpu" and batch_shape[1] <= _SHORT and not dropout:
        inner = _recomputed_short_attention
    else:
        inner = partial(_torch_attention, dropout=dropout)
    heads = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return inner(*heads, origin, batch_shape, scaling)[None], None


def _torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    origin: Tensor,
    batch_shape: tuple[int, int],
    scaling: float,
    dropout: float,
) -> Tensor:
    query, key, value = (spread(heads, origin, batch_shape).transpose(1, 2) for heads in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return collect(output.transpose(1, 2), origin)


def _recomputed_short_attention(*arguments: Any) -> Tensor:
    """Computed again in the backward pass: scores kept for it would be the largest part of all activations."""
    return checkpoint(short_attention, *arguments, use_reentrant=False, preserve_rng_state=False)


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, origin: Tensor, batch_shape: tuple[int, int], scaling: float
) -> Tensor:
    """Causal attention of tokens (tokens, heads, head size) in rows `batch_shape`, by plain matrix products.

    origin: see TokenLayout. Fewer key and value heads than query heads are shared among these.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    query, key, value = (
        spread(heads, origin, batch_shape).transpose(1, 2).flatten(0, 1) for heads in (query, key, value)
    )
    places = torch.arange(batch_shape[1], device=query.device)
    scores = torch.bmm(query, key.transpose(1, 2)).float() * scaling
    probabilities = scores.masked_fill(places > places[:, None], float("-inf")).softmax(-1).to(value.dtype)
    output = torch.bmm(probabilities, value).unflatten(0, (batch_shape[0], -1))
    return collect(output.transpose(1, 2), origin)


# A name without a mask function makes transformers build no mask at all: its own test for packed rows would
# wait for the accelerator in eager mode, and would build a mask under torch.compile.
AttentionInterface.register(ATTENTION, _causal_attention)
