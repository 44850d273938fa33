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
    documents: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query, key, value (1, heads, tokens, head size) to (1, tokens,
    ...).

    The tokens are spread to their rows, `batch_shape`, for the attention itself. No real token attends to
    the zeros there, and the outputs at padded positions are dropped, so that no gradient comes from them.
    documents: (rows, length) numbers; a token attends to tokens of its own number only.
    """
    assert origin is not None
    # compiled for a CPU, the products and one fused softmax take half the time of torch's kernel; eager, twice
    if torch.compiler.is_compiling() and query.device.type == "cpu" and batch_shape[1] <= _SHORT and not dropout:
        inner = _recomputed_short_attention
    else:
        inner = partial(_torch_attention, dropout=dropout)
    heads = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return inner(*heads, origin, batch_shape, scaling, documents)[None], None


def _torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    origin: Tensor,
    batch_shape: tuple[int, int],
    scaling: float,
    documents: Tensor | None,
    dropout: float,
) -> Tensor:
    query, key, value = (spread(heads, origin, batch_shape).transpose(1, 2) for heads in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    mask = None if documents is None else _same_document(documents).tril()[:, None]
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return collect(output.transpose(1, 2), origin)


def _same_document(documents: Tensor) -> Tensor:
    """(rows, length) numbers of documents to (rows, length, length): whether query and key are of the same one."""
    return documents[:, :, None] == documents[:, None, :]


def _recomputed_short_attention(*arguments: Any) -> Tensor:
    """Computed again in the backward pass: scores kept for it would be the largest part of all activations."""
    return checkpoint(short_attention, *arguments, use_reentrant=False, preserve_rng_state=False)


def short_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    origin: Tensor,
    batch_shape: tuple[int, int],
    scaling: float,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal attention of tokens (tokens, heads, head size) in rows `batch_shape`, by plain matrix products.

    origin: see TokenLayout. documents: see `_causal_attention`. Fewer key and value heads than query heads are
    shared among these.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    query, key, value = (
        spread(heads, origin, batch_shape).transpose(1, 2).flatten(0, 1) for heads in (query, key, value)
    )
    places = torch.arange(batch_shape[1], device=query.device)
    scores = torch.bmm(query, key.transpose(1, 2)).float() * scaling
    hidden = places > places[:, None]
    if documents is not None:
        hidden = hidden | ~_same_document(documents).repeat_interleave(len(scores) // len(documents), dim=0)
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(value.dtype)
    output = torch.bmm(probabilities, value).unflatten(0, (batch_shape[0], -1))
    return collect(output.transpose(1, 2), origin)


# A name without a mask function makes transformers build no mask at all: its own test for packed rows would
# wait for the accelerator in eager mode, and would build a mask under torch.compile.
AttentionInterface.register(ATTENTION, _causal_attention)
