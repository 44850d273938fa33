"""The orthogonal polar factor U V' of a matrix U S V', from matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import product

Coefficients = tuple[tuple[float, float, float], ...]

NEWTON_SCHULZ: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Muon's quintic (Jordan et al. 2024, kellerjordan.github.io/posts/muon): singular values end in about [0.7, 1.2]."""
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Polar Express (Amsel et al., arXiv 2505.16932): a polynomial for each iteration, each the best for its interval."""
POLAR_EXPRESS_MARGIN = 1.02
"""What the norm is multiplied by, so that rounding does not carry a singular value out of Polar Express' interval."""

DTYPES = ("auto", "bfloat16", "float32")
"""Of the products. auto: bfloat16, as published, on an accelerator; float32 on a CPU, where bfloat16 products took
eight times as long on a processor without instructions for them."""


def polar(matrix: Tensor, coefficients: Coefficients, eps: float, margin: float = 1.0, dtype: str = "auto") -> Tensor:
    """Nearly the orthogonal factor of a float32 matrix (m, n), float32; a matrix of zeros stays one.

    X <- X / (margin |X| + eps) in the Frobenius norm; then, for each (a, b, c), X <- a X + (b A + c A A) X with
    A = X X', on the transposed matrix where m > n. dtype: one of DTYPES.
    """
    on_cpu = matrix.device.type == "cpu"
    working = torch.float32 if dtype == "float32" or (dtype == "auto" and on_cpu) else torch.bfloat16
    x = (matrix / (torch.linalg.vector_norm(matrix) * margin + eps)).to(working)
    tall = matrix.shape[0] > matrix.shape[1]
    x = x.mT if tall else x
    for a, b, c in coefficients:
        gram = _product(x, x.mT)
        x = _added(x, _added(gram, gram, gram, b, c), x, a, 1.0)
    return (x.mT if tall else x).float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    return product(left, right) if left.dtype == torch.float32 else left @ right


def _added(base: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
    """beta base + alpha left @ right; in bfloat16 rounded once."""
    if base.dtype == torch.float32:
        return base * beta + product(left, right) * alpha
    return torch.addmm(base, left, right, beta=beta, alpha=alpha)
