"""Muon and Dion2: steps that are nearly the orthogonal factor of a momentum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.moments import Lion, average
from tests.oracles.parameter import ParameterOracle, PlainAdam

MUON_TRIPLE = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
DION_TRIPLES = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
MUON = {
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "adjust_lr_fn": None,
    "coefficients": "newton_schulz",
    "normuon": False,
    "normuon_beta2": 0.95,
    "adamw_betas": (0.9, 0.95),
    "adamw_eps": 1e-8,
    "use_muon": True,
}
DION2 = {
    "fraction": 0.25,
    "ef_decay": 0.95,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "epsilon": 1e-8,
    "adjust_lr": "spectral_norm",
    "use_polar_express": True,
    "algorithm": "dion2",
}


def iterate(matrix: Tensor, triples: list[tuple[float, float, float]], divisor: float) -> Tensor:
    """The polynomials act on the singular values: U p(...p(S / divisor)) V', from a full decomposition."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    sigma = sigma / divisor
    for a, b, c in triples:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return (u * sigma) @ vt


def norm(matrix: Tensor) -> float:
    return matrix.pow(2).sum().sqrt().item()


class Muon(ParameterOracle):
    """One matrix. The buffer is the sum B <- mu B + G of Moonlight, scaled by 1 - mu where the size matters."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.buffer = torch.zeros_like(self.weight)
        self.v: Tensor | None = None

    def factor(self) -> float:
        rows, columns = self.weight.shape
        if self.s["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * max(rows, columns) ** 0.5
        return max(1.0, rows / columns) ** 0.5

    def orthogonal(self, matrix: Tensor) -> Tensor:
        if self.s["coefficients"] == "polar_express":
            return iterate(matrix, POLAR_EXPRESS, 1.02 * norm(matrix) + 1e-6)
        return iterate(matrix, [MUON_TRIPLE] * self.s["ns_steps"], norm(matrix) + 1e-7)

    def evened(self, step: Tensor) -> Tensor:
        """NorMuon (arXiv 2510.05491): one mean square for each line of the longer side."""
        along = 1 if step.shape[0] >= step.shape[1] else 0
        square = step.pow(2).mean(along, keepdim=True)
        self.v = average(torch.zeros_like(square) if self.v is None else self.v, square, self.s["normuon_beta2"])
        even = step / self.v.clamp_min(1e-10).sqrt()
        return even * norm(step) / norm(even)

    def update(self, gradient: Tensor, lr: float) -> None:
        mu = self.s["momentum"]
        self.buffer = mu * self.buffer + gradient
        ahead = gradient + mu * self.buffer if self.s["nesterov"] else self.buffer
        step = self.orthogonal((1 - mu) * ahead)
        if self.s["normuon"]:
            step = self.evened(step)
        self.decay(lr)
        self.weight = self.weight - lr * self.factor() * step


def muon(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**MUON, **settings}
    common = {"weight_decay": s["weight_decay"], "dtype": dtype}
    if s["use_muon"]:
        return Muon(weight, s, **common)
    betas, eps = s.get("betas") or s["adamw_betas"], s["adamw_eps"] if s.get("eps") is None else s["eps"]
    return PlainAdam(weight, betas=betas, eps=eps, eps_placement="before", decay_order="before", **common)


class Dion2(ParameterOracle):
    """One matrix: the shorter side's lines with the largest sums of absolute values move."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.m = torch.zeros_like(self.weight)

    def factor(self) -> float:
        rows, columns = self.weight.shape
        return {"spectral_norm": (rows / columns) ** 0.5, "rms_norm": 0.2 * max(rows, columns) ** 0.5}.get(
            self.s["adjust_lr"], 1.0
        )

    def update(self, gradient: Tensor, lr: float) -> None:
        self.m = self.m + gradient
        by_rows = self.m.shape[0] <= self.m.shape[1]
        lines = self.m if by_rows else self.m.T
        count = max(1, math.ceil(self.s["fraction"] * len(lines)))
        sums = lines.abs().sum(1).tolist()
        chosen = sorted(range(len(lines)), key=lambda line: -sums[line])[:count]
        part = torch.stack([lines[line] for line in chosen])
        if self.s["use_polar_express"]:
            step = iterate(part, POLAR_EXPRESS, 1.02 * norm(part) + self.s["epsilon"])
        else:
            step = iterate(part, DION_TRIPLES, norm(part) + self.s["epsilon"])
        self.decay(lr)
        moved, kept = torch.zeros_like(lines), lines.clone()
        for number, line in enumerate(chosen):
            moved[line] = step[number]
            kept[line] = self.s["ef_decay"] * lines[line]
        self.m = kept if by_rows else kept.T
        self.weight = self.weight - lr * self.factor() * (moved if by_rows else moved.T)


class _LionDecayedFirst(ParameterOracle):
    def __init__(self, weight: Tensor, betas: tuple[float, float], **common: Any):
        super().__init__(weight, **common)
        self.lion = Lion(betas)

    def update(self, gradient: Tensor, lr: float) -> None:
        self.decay(lr)
        self.weight = self.weight - lr * torch.sign(self.lion.interpolate(gradient))


def dion2(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DION2, **settings}
    common = {"weight_decay": s["weight_decay"], "dtype": dtype}
    if s["algorithm"] == "lion":
        return _LionDecayedFirst(weight, s["betas"], **common)
    if s["algorithm"] == "adamw":
        return PlainAdam(
            weight, betas=s["betas"], eps=s["epsilon"], eps_placement="after", decay_order="before", **common
        )
    return Dion2(weight, s, **common)
