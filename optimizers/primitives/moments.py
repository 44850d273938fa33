"""Moving averages and the steps of the classical weight optimizers, on one float32 tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.rule import Scalars


def first_moment(state: dict[str, Tensor], grad: Tensor, beta1: float, name: str = "exp_avg") -> Tensor:
    """E[grad]_beta1, in place; the gradient itself where no average is kept (beta1 0)."""
    return state[name].lerp_(grad, 1.0 - beta1) if name in state else grad


def second_moment(state: dict[str, Tensor], square: Tensor, beta2: float, name: str = "exp_avg_sq") -> Tensor:
    """E[square]_beta2, in place."""
    return state[name].mul_(beta2).add_(square, alpha=1.0 - beta2)


def adam_scalars(step: int, beta1: float, beta2: float, correct_bias: bool = True) -> dict[str, float]:
    """Bias corrections of Adam at update `step`: "step_size" = sqrt(c2)/c1, "inverse_c1", "inverse_root_c2"."""
    c1 = 1.0 - beta1**step if correct_bias else 1.0
    c2 = 1.0 - beta2**step if correct_bias else 1.0
    return {"step_size": math.sqrt(c2) / c1, "inverse_c1": 1.0 / c1, "inverse_root_c2": 1.0 / math.sqrt(c2)}


def adam_direction(m: Tensor, v: Tensor, s: Scalars, eps: float, eps_inside: bool) -> Tensor:
    """The step of Adam before lr: eps is added to sqrt(v), or (eps_inside) to sqrt(v/c2).

    The factor of m has the shape of v: where that is one value a row, one division a row.
    """
    if eps_inside:
        return m * (s["inverse_c1"] / (v.sqrt() * s["inverse_root_c2"] + eps))
    return m * (s["step_size"] / (v.sqrt() + eps))


def adafactor_scalars(step: int, decay_rate: float) -> dict[str, float]:
    """1 - beta2 of Adafactor, beta2 = 1 - step^decay_rate (Shazeer & Stern, arXiv 1804.04235, section 7.2)."""
    return {"one_minus_beta2": step**decay_rate}


def adafactor_update(grad: Tensor, rows: Tensor | None, columns: Tensor, s: Scalars, eps: float, clip: float) -> Tensor:
    """Adafactor's clipped update of a matrix (m, n) from row means (m,) and column means (n,), in place.

    rows None: unfactored, `columns` holds E[grad^2] in the shape of grad.
    """
    square = grad.square() + eps
    weight = s["one_minus_beta2"]
    if rows is None:
        columns.add_((square - columns) * weight)
        update = grad / columns.sqrt()
    else:
        rows.add_((square.mean(dim=-1) - rows) * weight)
        columns.add_((square.mean(dim=-2) - columns) * weight)
        update = grad * (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)
    rms = update.square().mean().sqrt()
    return update / torch.clamp(rms / clip, min=1.0)
