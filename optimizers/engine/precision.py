"""Storage formats: float32 mathematics over float32, bfloat16 or 8-bit state, and stochastic rounding.

8-bit state is bitsandbytes' blockwise dynamic format (Dettmers et al., arXiv 2110.02861): blocks of 256 over the
row-major tensor, one float32 absolute maximum a block, a signed or an unsigned map of 256 codes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import State, StateSpec

BLOCK = 256
SMALL = 4096
"""Tensors with fewer elements stay float32: bitsandbytes' limit too; they save nothing."""
SMALL_SHARE = 1 / 16
"""Nor do vectors of at most this share of their weight's elements: a second moment for each row or block. Moments of a
low rank are matrices, and follow the option at any rank."""

NEAREST = "bfloat16, to nearest"
"""The storage format of bfloat16 state that is not rounded stochastically."""

Specs = tuple[tuple[str, StateSpec, str], ...]
"""(name, description, storage format) of each state tensor of a parameter."""
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
Seed = int | Tensor
"""A 30-bit number, or what `words` makes of it as an int32 tensor of 2."""


def storage_format(spec: StateSpec, state_dtype: str, weight: Tensor) -> str:
    """The format ("float32", "bfloat16" or "int8") in which a state tensor of this weight is kept.

    "float64" for float64 weights; ValueError where anything narrower is asked for them.
    """
    numel = torch.Size(spec.shape).numel()
    chosen = "int8" if spec.format == "int8" else state_dtype
    if spec.format == "unquantized" and chosen == "int8":
        chosen = "float32"
    if weight.dtype == torch.float64:
        if chosen != "float32":
            raise ValueError(f"float64 weights have float64 state, not {chosen}: take state_dtype='float32'")
        return "float64"
    is_vector = sum(side > 1 for side in spec.shape) <= 1
    if spec.kind == "statistic" or numel < SMALL or (is_vector and numel <= weight.numel() * SMALL_SHARE):
        return "float32"
    if spec.kind == "basis" and chosen == "int8":
        return "bfloat16" if weight.dtype == torch.bfloat16 else "float32"
    return chosen


def widened(tensor: Tensor) -> Tensor:
    """The tensor as the mathematics takes it: float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def layout(name: str, spec: StateSpec, storage: str) -> Layout:
    """Names, shapes and dtypes of the tensors that hold one state tensor."""
    if storage == "int8":
        blocks = -(-torch.Size(spec.shape).numel() // BLOCK)
        return {name: (spec.shape, torch.uint8), f"{name}_absmax": ((blocks,), torch.float32)}
    return {name: (spec.shape, getattr(torch, storage.partition(",")[0]))}


def check_fits(name: str, layout: Layout, tensors: Mapping[str, Any]) -> None:
    """Raise ValueError when the state tensors of a parameter of this name do not fit its layout."""
    missing, unknown = sorted(set(layout) - set(tensors)), sorted(set(tensors) - set(layout))
    if missing or unknown:
        raise ValueError(
            f"{name}: this state is of another method or format (missing {missing or 'nothing'}, "
            f"not known here {unknown or 'nothing'})"
        )
    for key, value in tensors.items():
        shape, dtype = layout[key]
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: {key} of the state is a {type(value).__name__}, not a tensor")
        if tuple(value.shape) != shape or value.dtype != dtype:
            raise ValueError(
                f"{name}: {key} of the state is {value.dtype} {tuple(value.shape)}, here it is {dtype} {shape}"
            )


_CODES: dict[tuple[bool, torch.device], Tensor] = {}


def prepare_codes(device: torch.device, meta: bool = False) -> None:
    """Make the two maps of 256 ascending values on a device, before 8-bit state is used there.

    meta: also on the meta device, where they have no values.

    Raises ValueError when bitsandbytes is not installed.
    """
    if (device.type == "meta" and not meta) or (True, device) in _CODES:
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
    """The float32 value of a state tensor; for float32 (and float64) storage the stored tensor itself."""
    if storage in ("float32", "float64"):
        return stored[name]
    if storage in ("bfloat16", NEAREST):
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
    if storage in ("float32", "float64"):
        if target is not value:
            target.copy_(value)
    elif storage == NEAREST:
        target.copy_(value)
    elif storage == "bfloat16":
        target.copy_(round_stochastically(value, seed, part * (value.shape[0] if value.ndim else 1), salt))
    else:
        code = _codes(spec, target.device)
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(value.contiguous(), code, BLOCK)
        target.copy_(codes)
        stored[f"{name}_absmax"].copy_(absmax)


def round_stochastically(
    value: Tensor, seed: Seed, first_row: int = 0, salt: int = 0, rest: Tensor | None = None
) -> Tensor:
    """float32 -> bfloat16, up or down with probabilities that keep the expectation; non-finite values stay.

    The noise is a function of row, column, seed and salt: the same in eager and compiled execution, on every rank,
    and after a resume. first_row: the number of the value's first row in the tensor that it is a part of.
    rest: what float32 could not add to the value; it moves the expectation, too.

    Float arithmetic only, because torch.compile moves bits between float and integer element by element on a CPU,
    which took 1.7 ns an element where this takes 0.5. Every product is by a power of two, hence exact, but for those
    in `_power_on_cpu`; adding and subtracting a number whose own float32 spacing is that of the value in bfloat16
    rounds to its multiples. The value is split into the nearest multiple and what is left: what is left has bits to
    spare for the noise, so the expectation is right to 2^-24 of a spacing, and a bfloat16 number stays what it is.
    """
    rows = _as_rows(value)
    power = _power_on_cpu(rows) if value.device.type == "cpu" else _power(rows)
    grid = power * (1.5 * 2.0**16)
    nearest = (rows + grid) - grid
    left = rows - nearest
    if rest is not None:
        left = left + _as_rows(rest)
    moved = left + _noise(rows, seed, first_row, salt) * (power * 2.0**-39)
    rounded = nearest + ((moved + grid) - grid)
    return torch.where(rows.abs() < 2.0**100, rounded, rows).to(torch.bfloat16).view(value.shape)


def _as_rows(value: Tensor) -> Tensor:
    return value if value.ndim == 2 else value.reshape(value.shape[0] if value.ndim else 1, -1)


def _power_on_cpu(value: Tensor) -> Tensor:
    """The largest power of two not above |value|, with its sign (Rump, Ogita & Oishi, SIAM J. Sci. Comput. 31(1), 2008,
    algorithm 3.5). Products must not be contracted into fused multiply-adds."""
    large = value * (2.0**23 + 1)
    return large - large * (1 - 2.0**-24)


def _power(value: Tensor) -> Tensor:
    """The same, 0 below 2^-126: sign and exponent bits alone."""
    return (value.contiguous().view(torch.int32) & -0x800000).view(torch.float32)


@functools.lru_cache(maxsize=4096)
def words(seed: int) -> tuple[int, int]:
    """Two 32-bit numbers, signed, that a seed stands for."""
    return _signed(_mixed(seed) >> 16), _signed(_mixed(seed ^ 0x2545F491))


def _signed(x: int) -> int:
    return (x & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


SALTS = (_signed(0x9E3779B1), _signed(0x85EBCA6B))


def _noise(like: Tensor, seed: Seed, first_row: int, salt: int) -> Tensor:
    """Uniform numbers in [-2^31, 2^31] of the shape of a matrix, float32: x (2x + 1) mod 2^32 of x = (row number + s) ^
    (column number + t), where s and t come from the seed and the numbers of rows and columns are fixed, random and
    different from one another.

    x (2x + 1) is a permutation whose upper bits depend on all lower ones (RC6's, Rivest et al., 1998). One
    multiplication: as even, uncorrelated and full in rank as torch's own generator in every statistic that was tried.
    """
    rows, columns = like.shape
    of_rows, of_columns = tables(like.device, max(first_row + rows, columns))
    s, t = words(seed) if isinstance(seed, int) else seed.unbind()
    if salt:
        s, t = s + _signed(SALTS[0] * salt), t + _signed(SALTS[1] * salt)
    if isinstance(seed, int):
        s, t = _signed(int(s)), _signed(int(t))
    x = (of_rows[first_row : first_row + rows, None] + s) ^ (of_columns[None, :columns] + t)
    if torch.compiler.is_compiling():
        return (x * (x + x + 1)).float()
    return torch.addcmul(x, x, x, value=2).float()


_TABLES: dict[torch.device, dict[int, tuple[Tensor, Tensor]]] = {}


def tables(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Fixed random int32 numbers, for at least `size` rows and columns, no two of which agree in their last 30 bits;
    made when first asked for.

    A table begins with the numbers of any smaller one. Call `prepare_noise` before compiling what rounds.
    """
    made = _TABLES.setdefault(device, {})
    large_enough = [length for length in made if length >= size]
    if large_enough:
        return made[min(large_enough)]
    length = 1 << max(16, (size - 1).bit_length())
    made[length] = (_numbers(length, 0x1234567, device), _numbers(length, 0xDABCDEF, device))
    return made[length]


def _numbers(length: int, start: int, device: torch.device) -> Tensor:
    index = torch.arange(start, start + length, dtype=torch.int64, device=device)
    low = index & 0x3FFFFFFF
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x1B873593)):  # each is a permutation of 30 bits
        low = (low ^ low >> shift) * factor & 0x3FFFFFFF
    return ((_mixed(index) & 3) - 2 << 30 | low).to(torch.int32)


def prepare_noise(device: torch.device, shapes: Sequence[Sequence[int]]) -> None:
    """Make the tables that rounding tensors of these shapes, or shards of them, will ask for."""
    sides = [(shape[0], math.prod(shape[1:])) for shape in shapes if len(shape)]
    tables(device, max(itertools.chain.from_iterable(sides), default=1))


def _mixed(x: Any) -> Any:
    """48 well-mixed bits of an integer below 2^31, or of an int64 tensor of them: products stay below 2^63."""
    x = (x ^ x >> 15) * 0x2C1B3C6D & 0xFFFFFFFF
    x = (x ^ x >> 12) * 0x297A2D39 & 0xFFFFFFFF
    return (x ^ x >> 15) * 0x1B873593 & 0xFFFFFFFFFFFF
