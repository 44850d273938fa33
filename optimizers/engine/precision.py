"""Storage formats: float32 mathematics over float32, bfloat16 or 8-bit state, and stochastic rounding.

8-bit state is bitsandbytes' blockwise dynamic format (Dettmers et al., arXiv 2110.02861): blocks of 256 over the
row-major tensor, one float32 absolute maximum a block, a signed or an unsigned map of 256 codes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import State, StateSpec

BLOCK = 256
SMALL = 4096
"""Tensors with fewer elements stay float32: bitsandbytes' limit too; they save nothing."""
SMALL_SHARE = 1 / 16
"""Nor do tensors of at most this share of their weight's elements: a second moment for each row or block."""

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
Seed = int | Tensor
"""A 30-bit number, or what `phases` makes of it as a float32 tensor of 3."""


def storage_format(spec: StateSpec, state_dtype: str, weight: Tensor) -> str:
    """The format ("float32", "bfloat16" or "int8") in which a state tensor of this weight is kept."""
    numel = torch.Size(spec.shape).numel()
    chosen = "int8" if spec.format == "int8" else state_dtype
    if spec.format == "unquantized" and chosen == "int8":
        return "float32"
    if spec.kind == "statistic" or numel < SMALL or numel <= weight.numel() * SMALL_SHARE:
        return "float32"
    if spec.kind == "basis" and chosen == "int8":
        return "bfloat16" if weight.dtype == torch.bfloat16 else "float32"
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
    name: str, spec: StateSpec, storage: str, stored: State, value: Tensor, seed: Seed, part: int = 0, salt: int = 0
) -> None:
    """Write the float32 value back in its format.

    seed and salt: different for each tensor and update. part: which of several equal shards the value is.
    """
    target = stored[name]
    if storage == "float32":
        if target is not value:
            target.copy_(value)
    elif storage == "bfloat16":
        target.copy_(round_stochastically(value, seed, part * (value.shape[0] if value.ndim else 1), salt))
    else:
        code = _codes(spec, target.device)
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(value.contiguous(), code, BLOCK)
        target.copy_(codes)
        stored[f"{name}_absmax"].copy_(absmax)


def round_stochastically(value: Tensor, seed: Seed, first_row: int = 0, salt: int = 0) -> Tensor:
    """float32 -> bfloat16, up or down with probabilities that keep the expectation; non-finite values stay.

    The noise is a function of row, column, seed and salt: the same in eager and compiled execution, on every rank,
    and after a resume. first_row: the number of the value's first row in the tensor that it is a part of.
    """
    rows = value if value.ndim == 2 else value.reshape(value.shape[0] if value.ndim else 1, -1)
    noise = _noise(rows, seed, first_row, salt)
    rounded = _round_on_cpu(rows, noise) if value.device.type == "cpu" else _round_bits(rows, noise)
    return rounded.view(value.shape)


def _round_on_cpu(value: Tensor, noise: Tensor) -> Tensor:
    """Round to a neighbouring bfloat16 in float32 arithmetic: torch.compile moves bits between float and integer
    element by element on a CPU, which took 1.7 ns an element where this takes 0.5.

    `power` is the largest power of two not above |value|, with its sign (Rump, Ogita & Oishi, SIAM J. Sci. Comput.
    31(1), 2008, algorithm 3.5); a bfloat16 spacing is power / 128. Adding and subtracting a number whose own float32
    spacing is that rounds to the spacing's multiples. The noise is 2^-15 narrower than a spacing, so that a bfloat16
    number stays what it is. Products must not be contracted into fused multiply-adds.
    """
    large = value * (2.0**23 + 1)
    power = large - large * (1 - 2.0**-24)
    moved = value + (noise - 0.5) * (power * (2.0**-7 * (1 - 2.0**-15)))
    grid = power * (1.5 * 2.0**16)
    return torch.where(value.abs() < 2.0**100, (moved + grid) - grid, value).to(torch.bfloat16)


def _round_bits(value: Tensor, noise: Tensor) -> Tensor:
    """Round to a neighbouring bfloat16: noise below its last bit is added, the bits there are cut off."""
    bits = (value.contiguous().view(torch.int32) + (noise * 65536).to(torch.int32)) & -0x10000
    return torch.where(torch.isfinite(value), bits.view(torch.float32), value).to(torch.bfloat16)


def phases(seed: int) -> tuple[float, float, float]:
    """Three 16-bit numbers in [0, 4), [0, 4) and [0, 1) that a seed stands for."""
    bits = _mixed(seed)
    return (bits & 0xFFFF) * 2.0**-14, (bits >> 16 & 0xFFFF) * 2.0**-14, (bits >> 32 & 0xFFFF) * 2.0**-16


def _noise(like: Tensor, seed: Seed, first_row: int, salt: int) -> Tensor:
    """Uniform numbers in [0, 1) of the shape of a matrix: the fraction of (a_row + s) (b_column + t) + u.

    a and b are fixed random numbers, s, t and u (uniform, so each element's noise is) come from the seed. A few
    vectorised float operations: an integer hash of the index took a third of the time of a whole update.
    """
    rows, columns = like.shape
    of_rows, of_columns = tables(like.device, max(first_row + rows, columns))
    s, t, u = phases(seed) if isinstance(seed, int) else seed.unbind()
    a = of_rows[first_row : first_row + rows, None] + (s + salt * 0.640625)
    b = of_columns[None, :columns] + (t + salt * 0.828125)
    turns = a * b + (u + salt * 0.25)
    return turns - turns.floor()


_TABLES: dict[torch.device, dict[int, tuple[Tensor, Tensor]]] = {}


def tables(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Fixed random numbers in [0, 4), float32, for at least `size` rows and columns; made when first asked for.

    A table begins with the numbers of any smaller one. Call `prepare_noise` before compiling what rounds.
    """
    made = _TABLES.setdefault(device, {})
    large_enough = [length for length in made if length >= size]
    if large_enough:
        return made[min(large_enough)]
    length = 1 << max(16, (size - 1).bit_length())
    index = torch.arange(2 * length, dtype=torch.int64, device=device)
    numbers = ((_mixed(index + 1) & 0xFFFF) * 2.0**-14).float()
    made[length] = (numbers[0::2].contiguous(), numbers[1::2].contiguous())
    return made[length]


def prepare_noise(device: torch.device, shapes: Sequence[Sequence[int]]) -> None:
    """Make the tables that rounding tensors of these shapes, or shards of them, will ask for."""
    sides = [(shape[0], math.prod(shape[1:])) for shape in shapes if len(shape)]
    tables(device, max(itertools.chain.from_iterable(sides), default=1))


def _mixed(x: Any) -> Any:
    """48 well-mixed bits of an integer below 2^31, or of an int64 tensor of them: products stay below 2^63."""
    x = (x ^ x >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
    x = (x ^ x >> 12) * 0x297A2D39 & 0xFFFFFFFF
    return (x ^ x >> 15) * 0x1B873593 & 0xFFFFFFFFFFFF
