"""8-bit blockwise dynamic quantization, from the definition of the dynamic data type (arXiv 2110.02861).

A code is a sign (signed maps), a run of zero bits whose length is a decimal exponent, and linear fraction bits: the
shorter the run, the more bits are left for the fraction. In the decade 10^-e (e = 0..6) there are 2^(6-e) fractions
per sign in the signed map, and twice as many in the unsigned one, which has no sign bit to pay for. The fractions are
the midpoints of equal cells of [0.1, 1]. Zero and one are codes of their own.

bitsandbytes' CPU kernel finds the nearest code through a table of 2^16 equal cells over [-1, 1], so a value is rounded
as the centre of its cell would be. Only values below about 3e-5 of their block's maximum notice: they never become
zero, and a second moment that small is stored as 1.6e-5 of the maximum. The recorded 8-bit trajectory shows exactly
that (3.6% of the distance moved from plain nearest rounding, 0.7% with the table), so it is the default here.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
DECADES = 7
TABLE_CELLS = 2**16


def dynamic_map(signed: bool) -> Tensor:
    """The 256 representable values in [-1, 1] (signed) or [0, 1], ascending, float64."""
    values = [0.0, 1.0]
    for exponent in range(DECADES):
        cells = 2 ** (DECADES - 1 - exponent) * (1 if signed else 2)
        for cell in range(cells):
            midpoint = 0.1 + 0.9 * (cell + 0.5) / cells
            values.append(midpoint * 10.0**-exponent)
            if signed:
                values.append(-midpoint * 10.0**-exponent)
    return torch.tensor(sorted(values), dtype=torch.float64)


class BlockwiseTensor:
    """`tensor` stored as one code per element and one absolute maximum per 256 consecutive elements (row-major).

    `table_cells` 0 rounds every element to its nearest code, exactly.
    """

    def __init__(self, tensor: Tensor, signed: bool, table_cells: int = TABLE_CELLS):
        self.shape, self.map, self.dtype = tensor.shape, dynamic_map(signed), tensor.dtype
        self.codes: list[Tensor] = []
        self.maxima: list[float] = []
        for block in tensor.double().reshape(-1).split(BLOCK):
            largest = block.abs().max().item()
            relative = block / largest if largest > 0 else torch.zeros_like(block)
            if table_cells:
                cell = ((relative + 1) * (table_cells - 1) / 2).round()
                relative = cell * 2 / (table_cells - 1) - 1
            self.maxima.append(largest)
            self.codes.append((relative[:, None] - self.map[None, :]).abs().argmin(dim=1))

    def values(self) -> Tensor:
        """The stored tensor, in the dtype and shape it had."""
        blocks = [self.map[codes] * largest for codes, largest in zip(self.codes, self.maxima, strict=True)]
        return torch.cat(blocks).reshape(self.shape).to(self.dtype)
