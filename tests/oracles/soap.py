"""SOAP (arXiv 2409.11321, algorithm 3): Adam in a slowly turning eigenbasis of Shampoo's preconditioners."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.oracles.moments import average
from tests.oracles.parameter import ParameterOracle

DEFAULTS = {
    "betas": (0.95, 0.95),
    "shampoo_beta": -1,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "precondition_frequency": 10,
    "max_precond_dim": 10000,
    "normalize_grads": False,
    "correct_bias": True,
}


class Soap(ParameterOracle):
    """One tensor. The first gradient makes the bases and moves nothing; bases turn after the update."""

    def __init__(self, weight: Tensor, settings: dict[str, Any], **common: Any):
        super().__init__(weight, **common)
        self.s = settings
        self.updates = 0
        longest = settings["max_precond_dim"]
        self.sides = [d for d in (0, 1) if weight.dim() == 2 and weight.shape[d] <= longest]
        self.preconditioner: dict[int, Tensor] = {}
        self.q: dict[int, Tensor] = {}
        self.m = torch.zeros_like(self.weight)  # in the original coordinates between updates
        self.v = torch.zeros_like(self.weight)  # in the eigenbasis

    @property
    def shampoo_beta(self) -> float:
        return self.s["shampoo_beta"] if self.s["shampoo_beta"] >= 0 else self.s["betas"][1]

    def gather(self, gradient: Tensor) -> None:
        for d in self.sides:
            product = gradient @ gradient.T if d == 0 else gradient.T @ gradient
            self.preconditioner[d] = average(
                self.preconditioner.get(d, torch.zeros_like(product)), product, self.shampoo_beta
            )

    def into(self, matrix: Tensor) -> Tensor:
        matrix = self.q[0].T @ matrix if 0 in self.sides else matrix
        return matrix @ self.q[1] if 1 in self.sides else matrix

    def back(self, matrix: Tensor) -> Tensor:
        matrix = self.q[0] @ matrix if 0 in self.sides else matrix
        return matrix @ self.q[1].T if 1 in self.sides else matrix

    def turn(self) -> None:
        for d in self.sides:
            q, x = self.q[d], self.preconditioner[d]
            order = torch.diagonal(q.T @ x @ q).argsort(descending=True)
            self.v = self.v.index_select(d, order)
            self.q[d] = torch.linalg.qr(x @ q[:, order]).Q

    def update(self, gradient: Tensor, lr: float) -> None:
        if self.t == 1:
            self.gather(gradient)
            for d in self.sides:
                self.q[d] = torch.linalg.eigh(self.preconditioner[d]).eigenvectors.flip(1)
            return
        self.updates += 1
        (beta1, beta2), t = self.s["betas"], self.updates
        seen = self.into(gradient)
        m = average(self.into(self.m), seen, beta1)
        self.v = average(self.v, seen**2, beta2)
        step = self.back(m / (self.v.sqrt() + self.s["eps"]))
        if self.s["normalize_grads"]:
            step = step / step.pow(2).mean().sqrt()
        bias = math.sqrt(1 - beta2**t) / (1 - beta1**t) if self.s["correct_bias"] else 1.0
        self.weight = self.weight - lr * bias * step
        self.decay(lr)
        self.m = self.back(m)
        self.gather(gradient)
        if t % self.s["precondition_frequency"] == 0:
            self.turn()


def oracle(name: str, weight: Tensor, settings: dict[str, Any], dtype: torch.dtype) -> ParameterOracle:
    s = {**DEFAULTS, **settings}
    return Soap(weight, s, weight_decay=s["weight_decay"], dtype=dtype)
