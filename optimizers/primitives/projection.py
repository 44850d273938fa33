"""Low-rank bases of a matrix: which side, how they are computed, projection and lift.

A right basis B (r, n) has orthonormal rows: R = G B', lift(N) = N B. A left basis B (m, r) has orthonormal columns:
R = B' G, lift(N) = B N.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from ..engine.rule import Side as Side
from .products import product

logger = logging.getLogger(__name__)


def clamp_rank(shape: tuple[int, ...], rank: int) -> int:
    """The rank that fits the matrix; a larger one is lowered with a warning, once for each shape."""
    if rank > min(shape):
        _warn_of_rank(tuple(shape), rank)
    return min(rank, *shape)


@cache
def _warn_of_rank(shape: tuple[int, ...], rank: int) -> None:
    text = "rank %d is above the smaller side of a %d x %d matrix, which is projected with rank %d: nothing is saved"
    logger.warning(text, rank, *shape, min(shape))


def basis_shape(shape: tuple[int, ...], rank: int, side: Side) -> tuple[int, int]:
    """Shape of the basis of a (m, n) matrix."""
    r = clamp_rank(shape, rank)
    return (r, shape[1]) if side == "right" else (shape[0], r)


def projected_shape(shape: tuple[int, ...], rank: int, side: Side) -> tuple[int, int]:
    """Shape of the projected (m, n) matrix."""
    r = clamp_rank(shape, rank)
    return (shape[0], r) if side == "right" else (r, shape[1])


def project(matrix: Tensor, basis: Tensor, side: Side, narrow: bool = False) -> Tensor:
    """Coordinates of the matrix in the basis. narrow: see `product`."""
    return product(matrix, basis.mT, narrow) if side == "right" else product(basis.mT, matrix, narrow)


def lift(coordinates: Tensor, basis: Tensor, side: Side, narrow: bool = False) -> Tensor:
    """The matrix with these coordinates. narrow: see `product`."""
    return product(coordinates, basis, narrow) if side == "right" else product(basis, coordinates, narrow)


def singular_basis(matrix: Tensor, rank: int, side: Side) -> Tensor:
    """The leading singular vectors of the matrix by a full SVD; raises torch.linalg.LinAlgError."""
    left, right = singular_bases(matrix, rank)
    return right if side == "right" else left


def singular_bases(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left and right singular vectors by a full SVD; raises torch.linalg.LinAlgError."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    r = clamp_rank(matrix.shape, rank)
    return u[:, :r].contiguous(), vh[:r].contiguous()


def randomized_basis(matrix: Tensor, rank: int, side: Side, rng: torch.Generator, iterations: int = 1) -> Tensor:
    """An orthonormal basis of nearly the leading singular subspace, by randomized subspace iteration.

    Halko, Martinsson & Tropp, arXiv 0909.4061, algorithm 4.4. The iteration runs on the smaller side of the matrix,
    whatever side the basis is for, with 8 extra directions that a small eigenproblem drops at the end.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    r = clamp_rank(tuple(matrix.shape), rank)
    width = min(r + 8, tall.shape[1])
    q = torch.randn(tall.shape[1], width, generator=rng, device="cpu").to(matrix.device)
    for _ in range(iterations):
        q = torch.linalg.qr(product(tall.mT, product(tall, q))).Q
    image = product(tall, q)
    leading = torch.linalg.eigh(product(image.mT, image)).eigenvectors[:, -r:].flip(-1)
    on_columns = (side == "right") == (tall is matrix)
    basis = product(q, leading) if on_columns else torch.linalg.qr(product(image, leading)).Q
    return (basis.mT if side == "right" else basis).contiguous()


def power_iteration(matrix: Tensor, basis: Tensor, side: Side, narrow: bool = False) -> Tensor:
    """One step of subspace iteration from an old basis: two products and a QR (LDAdam, arXiv 2410.16103)."""
    if side == "right":
        image = product(matrix.mT, product(matrix, basis.mT, narrow), narrow)
        return torch.linalg.qr(image).Q.mT.contiguous()
    return torch.linalg.qr(product(matrix, product(matrix.mT, basis, narrow), narrow)).Q


def gram(matrix: Tensor, side: Side) -> Tensor:
    """G G' on the left, G' G on the right."""
    return product(matrix, matrix.mT) if side == "left" else product(matrix.mT, matrix)


def eigenbasis(symmetric: Tensor, side: Side) -> Tensor:
    """A basis of all eigenvectors, those of the largest eigenvalues first; raises torch.linalg.LinAlgError."""
    vectors = torch.linalg.eigh(symmetric).eigenvectors.flip(-1)
    return vectors if side == "left" else vectors.mT
