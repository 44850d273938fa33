"""Storage formats: float32 mathematics over float32, bfloat16 or 8-bit state, and stochastic rounding.

8-bit state is bitsandbytes' blockwise dynamic format (Dettmers et al., arXiv 2110.02861): blocks of 256 over the
row-major tensor, one float32 absolute maximum a block, a signed or an unsigned map of 256 codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import State, StateSpec

BLOCK = 256
SMALL = 4096
"""Tensors with fewer elements stay float32: bitsandbytes' limit too; they save nothing."""

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def storage_format(spec: StateSpec, state_dtype: str, weight_dtype: torch.dtype) -> str:
    """The format ("float32", "bfloat16" or "int8") in which a state tensor is kept."""
    numel = torch.Size(spec.shape).numel()
    chosen = "int8" if spec.format == "int8" else state_dtype
    if spec.format == "unquantized" and chosen == "int8":
        return "float32"
    if spec.kind == "statistic" or numel < SMALL:
        return "float32"
    if spec.kind == "basis" and chosen == "int8":
        return "bfloat16" if weight_dtype == torch.bfloat16 else "float32"
    return chosen


def layout(name: str, spec: StateSpec, storage: str) -> Layout:
    """Names, shapes and dtypes of the tensors that hold one state tensor."""
    if storage == "int8":
        blocks = -(-torch.Size(spec.shape).numel() // BLOCK)
        return {name: (spec.shape, torch.uint8), f"{name}_absmax": ((blocks,), torch.float32)}
    return {name: (spec.shape, getattr(torch, storage))}


_CODES: dict[tuple[bool, torch.device], Tensor] = {}


def prepare_codes(device: torch.device) -> None:
    """Make the two maps of 256 ascending values on a device, before 8-bit state is used there.

    Raises ValueError when bitsandbytes is not installed.
    """
    if device.type == "meta" or (True, device) in _CODES:
        return
    try:
        from bitsandbytes.functional import create_dynamic_map
    except ImportError as error:
        raise ValueError("state_dtype='int8' needs the package bitsandbytes: pip install bitsandbytes") from error
    for signed in (True, False):
        _CODES[signed, device] = create_dynamic_map(signed=signed).to(device)


def _codes(spec: StateSpec, device: torch.device) -> Tensor:
    return _CODES[spec.kind != "second_moment", device]


def load(name: str, spec: StateSpec, storage: str, stored: State) -> Tensor:
    """The float32 value of a state tensor; for float32 storage the stored tensor itself."""
    if storage == "float32":
        return stored[name]
    if storage == "bfloat16":
        return stored[name].float()
    code = _codes(spec, stored[name].device)
    return torch.ops.bitsandbytes.dequantize_blockwise(
        stored[name], stored[f"{name}_absmax"], code, BLOCK, torch.float32
    )


def store(
    name: str, spec: StateSpec, storage: str, stored: State, value: Tensor, seed: Tensor | int, part: int = 0
) -> None:
    """Write the float32 value back in its format.

    seed: int32, different for each tensor and update. part: which of several equal shards the value is.
    """
    target = stored[name]
    if storage == "float32":
        if target is not value:
            target.copy_(value)
    elif storage == "bfloat16":
        target.copy_(round_stochastically(value, seed, part * value.numel()))
    else:
        code = _codes(spec, target.device)
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(value.contiguous(), code, BLOCK)
        target.copy_(codes)
        stored[f"{name}_absmax"].copy_(absmax)


def round_stochastically(value: Tensor, seed: Tensor | int, offset: int = 0) -> Tensor:
    """float32 -> bfloat16, up or down with probabilities that keep the expectation; non-finite values stay.

    The random bits are a hash of element index and seed: the same in eager and compiled execution, on every rank,
    and after a resume. offset: index of the first element, for a shard of a larger tensor.
    """
    index = torch.arange(value.numel(), dtype=torch.int32, device=value.device).view(value.shape)
    noise = _hash(index + offset, seed) & 0xFFFF
    bits = (value.contiguous().view(torch.int32) + noise) & -0x10000
    rounded = bits.view(torch.float32)
    return torch.where(torch.isfinite(value), rounded, value).to(torch.bfloat16)


def _hash(x: Tensor, seed: Tensor | int) -> Tensor:
    """The 32-bit finalizer of MurmurHash3 on int32 tensors (wrapping products, logical shifts)."""
    x = x * -1640531527 + seed
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * -2048144789
    x = x ^ ((x >> 13) & 0x7FFFF)
    x = x * -1028477387
    return x ^ ((x >> 16) & 0xFFFF)
