"""Normal random numbers from a counter: a function of a key and an index, without a state to keep or to send."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.rule import Scalars

_BITS = 0xFFFFFFFF
_UNIT = 2.0**-24


def key(seed: int, number: int) -> dict[str, float]:
    """Two whole numbers below 2^24, as float32 holds them, for the number-th draw of a seed: "key_high", "key_low"."""
    x = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 1) & (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    x ^= x >> 31
    return {"key_high": float(x >> 40), "key_low": float(x & 0xFFFFFF)}


def normal(rows: int, columns: int, s: Scalars, device: torch.device) -> Tensor:
    """Independent N(0, 1) numbers (rows, columns), float32; `s` holds what `key` made.

    Box and Muller's transform of two hashed counters for each pair. The same on every process; safe to compile.
    """
    high, low = (torch.as_tensor(s[name], device=device).to(torch.int64) for name in ("key_high", "key_low"))
    pairs = -(-rows * columns // 2)
    counter = torch.arange(2 * pairs, dtype=torch.int64, device=device)
    bits = _hash(_hash((counter + (low << 8)) & _BITS) ^ (high << 8)) >> 8
    first, second = bits.to(torch.float32).split(pairs)
    radius = (-2.0 * ((first + 1.0) * _UNIT).log()).sqrt()
    angle = second * (2 * math.pi * _UNIT)
    numbers = torch.cat((radius * angle.cos(), radius * angle.sin()))
    return numbers[: rows * columns].view(rows, columns)


def _hash(x: Tensor) -> Tensor:
    """A mixing of 32-bit numbers in int64, whose products stay below 2^63."""
    x = (x ^ x >> 16) * 0x2C1B3C6D & _BITS
    x = (x ^ x >> 12) * 0x297A2D39 & _BITS
    return x ^ x >> 15
