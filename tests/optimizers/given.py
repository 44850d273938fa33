"""Bases that are not the method's to decide: random draws, and the signs that LAPACK gave to singular vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from optimizers import apollo
from optimizers.primitives import projection

Given = dict[torch.Size, Tensor]
"""The latest recorded basis of each matrix, by the matrix's shape: those of one recording all differ."""


@contextmanager
def taken(given: Given) -> Iterator[None]:
    """While open, random projections are the given ones, and singular bases point as the given ones do."""
    singular_basis = projection.singular_basis

    def drawn(rule: Any, grad: Tensor, state: Any, s: Any) -> Tensor:
        return given[grad.shape]

    def turned(matrix: Tensor, rank: int, side: str) -> Tensor:
        basis = singular_basis(matrix, rank, side)
        return basis * torch.sign((basis * given[matrix.shape]).sum(1 if side == "right" else 0, keepdim=True))

    with (
        mock.patch.object(apollo.ApolloStep, "projection", drawn),
        mock.patch.object(projection, "singular_basis", turned),
    ):
        yield
