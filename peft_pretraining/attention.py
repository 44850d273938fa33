"""Causal attention of right-padded rows, as a function that transformers' LLaMA can call."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from peft_pretraining.padding import collect, spread

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
    query, key, value = (
        spread(heads[0].transpose(0, 1), origin, batch_shape).transpose(1, 2) for heads in (query, key, value)
    )
    # compiled for a CPU, the products and one fused softmax take half the time of torch's kernel; eager,
    # twice
    if torch.compiler.is_compiling() and query.device.type == "cpu" and batch_shape[1] <= _SHORT and not dropout:
        output = short_row_attention(query, key, value, scaling)
    else:
        grouped = query.shape[1] != key.shape[1]
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    return collect(output.transpose(1, 2), origin)[None], None


def short_row_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention (rows, heads, length, head size) by plain products, meant to be compiled.

    Probabilities are computed again in the backward pass: keeping them would hold length^2 numbers a head.
    Fewer key and value heads than query heads are shared among these.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (
        heads[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) if groups > 1 else heads
        for heads in (key, value)
    )
    flat = (heads.flatten(0, 1) for heads in (query, key, value))
    return _ShortRowAttention.apply(*flat, scaling).view(query.shape)


class _ShortRowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return torch.bmm(_probabilities(query, key, scaling).to(value.dtype), value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        probabilities = _probabilities(query, key, ctx.scaling)
        by_probability = torch.bmm(gradient, value.transpose(1, 2)).float()
        centred = by_probability - (probabilities * by_probability).sum(-1, keepdim=True)
        by_score = (probabilities * centred * ctx.scaling).to(query.dtype)
        grad_value = torch.bmm(probabilities.to(value.dtype).transpose(1, 2), gradient)
        return torch.bmm(by_score, key), torch.bmm(by_score.transpose(1, 2), query), grad_value, None


def _probabilities(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """(heads, length, length) in fp32; zero where the key lies in the future."""
    places = torch.arange(query.shape[1], device=query.device)
    scores = torch.bmm(query, key.transpose(1, 2)).float() * scaling
    return scores.masked_fill(places > places[:, None], float("-inf")).softmax(-1)


# A name without a mask function makes transformers build no mask at all: its own test for packed rows would
# wait for the accelerator in eager mode, and would build a mask under torch.compile.
AttentionInterface.register(ATTENTION, _causal_attention)
