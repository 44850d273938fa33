"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

    first gradient:  L = (1 - bs) G G'   R = (1 - bs) G' G   Q = their eigenvectors, largest first; W is left alone
    later:           G~ = Q_L' G Q_R     M, V: Adam's moments of G~     W <- W - lr Q_L (Adam's step) Q_R'
                     L <- bs L + (1 - bs) G G'   R likewise
    every f updates: Q <- qr(L Q), columns sorted by the diagonal of Q' L Q; M is carried into the new basis, V sorted

A side longer than max_precond_dim has no basis. Vectors get Adam, which skips its first gradient too. A refresh comes
before the update that uses it instead of after the one before, which is the same.

Where m and n differ by two or more and both sides have a basis, the longer side's matrix is singular at first: its null
space gets whatever basis the eigensolver returns, and two right implementations differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.registry import Method, register
from .engine.rule import Bases, Scalars, Side, State, StateSpec, UpdateRule
from .engine.settings import beta, hyper
from .primitives import moments
from .primitives import projection as pr
from .primitives.products import product
from .primitives.steps import AdamSettings

SMALLEST_RMS = 1e-30


@dataclass(frozen=True)
class SoapSettings(AdamSettings):
    """What SOAP takes."""

    default_lr: ClassVar[float | None] = 3e-3
    beta1: float = beta(0.95, "decay of the momentum", key="betas", flags=("adam_beta1",))
    beta2: float = beta(0.95, "decay of the second moment", key="betas")
    shampoo_beta: float = hyper(-1.0, "decay of the preconditioners; below 0: beta2", below=1.0)
    eps: float = hyper(1e-8, "added to the root of the second moment", at_least=0.0)
    # The released class decays by 0.01; every method by name, and the published C4 runs, by nothing.
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied after the step", at_least=0.0, released=0.01)
    precondition_frequency: int = hyper(10, "updates between two refreshes of the bases (f)", at_least=1)
    max_precond_dim: int = hyper(10000, "longest side that has a basis", at_least=0)
    normalize_grads: bool = hyper(False, "divide each step by its root mean square")
    correct_bias: bool = hyper(True, "whether moments are corrected for their start at zero", flag=False)


@dataclass(frozen=True)
class SoapStep(UpdateRule):
    """SOAP on one tensor. sides: those that have a basis; none for a vector."""

    h: SoapSettings
    sides: tuple[Side, ...]

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment"), "exp_avg_sq": StateSpec(tuple(shape), "second_moment")}
        for side in self.sides:
            square = (shape[0],) * 2 if side == "left" else (shape[1],) * 2
            specs |= {f"gram_{side}": StateSpec(square, "statistic"), f"basis_{side}": StateSpec(square, "statistic")}
        return specs

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        if step == 1:
            return {"keep": 1.0, "step_size": 1.0}  # the first gradient makes the bases; the weight does not even decay
        return moments.adam_scalars(step - 1, self.h.beta1, self.h.beta2, self.h.correct_bias)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        if first:
            return torch.zeros_like(grad)
        seen = self._turned(grad, state, back=False)
        m = moments.first_moment(state, seen, self.h.beta1)
        v = moments.second_moment(state, seen * seen, self.h.beta2)
        step = self._turned(m / (v.sqrt() + self.h.eps), state, back=True)
        if self.h.normalize_grads:
            step = step / step.square().mean().sqrt().clamp_min(SMALLEST_RMS)
        for side in self.sides:
            state[f"gram_{side}"].lerp_(pr.gram(grad, side), 1.0 - self._shampoo_beta)
        return step * s["step_size"]

    @property
    def _shampoo_beta(self) -> float:
        return self.h.shampoo_beta if self.h.shampoo_beta >= 0.0 else self.h.beta2

    def _turned(self, matrix: Tensor, state: State, back: bool) -> Tensor:
        """The matrix in the bases, or back. A left basis has its vectors as columns, a right one as rows."""
        for side in self.sides:
            matrix = (pr.lift if back else pr.project)(matrix, state[f"basis_{side}"], side)
        return matrix

    def refresh_due(self, step: int, offset: int) -> bool:
        made = step - 2  # updates of the weight that the bases have seen
        return made >= 1 and (made + offset) % self.h.precondition_frequency == 0

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if self.initialised(state):
            for side, (basis, order) in {side: power_iteration(state, side) for side in self.sides}.items():
                turn_moments(state, side, basis, order)
            return True
        if not grad.any():
            return False
        grams = {side: pr.gram(grad, side) * (1.0 - self._shampoo_beta) for side in self.sides}
        for side, basis in {side: pr.eigenbasis(matrix, side) for side, matrix in grams.items()}.items():
            state[f"gram_{side}"].copy_(grams[side])
            state[f"basis_{side}"].copy_(basis)
        return True

    def initialised(self, state: State) -> bool:
        return all(bool(state[f"basis_{side}"].any()) for side in self.sides)

    def bases(self, state: State) -> Bases:
        return {f"basis_{side}": (state[f"basis_{side}"], side) for side in self.sides}


def power_iteration(state: State, side: Side) -> tuple[Tensor, Tensor]:
    """The basis after one step of power iteration, and the order in which it takes the old vectors."""
    columns = state[f"basis_{side}"] if side == "left" else state[f"basis_{side}"].mT
    image = product(state[f"gram_{side}"], columns)
    order = torch.argsort((columns * image).sum(0), descending=True)
    vectors = torch.linalg.qr(image[:, order]).Q
    return (vectors if side == "left" else vectors.mT), order


def turn_moments(state: State, side: Side, new: Tensor, order: Tensor) -> None:
    """Put a new basis in the place of the old one: M is carried over, V takes the order of the vectors."""
    old, m, v = state[f"basis_{side}"], state["exp_avg"], state["exp_avg_sq"]
    m.copy_(pr.project(pr.lift(m, old, side), new, side))
    v.copy_(v.index_select(0 if side == "left" else 1, order))
    old.copy_(new)


class SOAP(EngineOptimizer[SoapSettings]):
    """SOAP on matrices, Adam on everything else."""

    def rule_for(self, h: SoapSettings, param: Tensor) -> UpdateRule:
        both: tuple[Side, ...] = ("left", "right") if param.ndim == 2 else ()
        return SoapStep(h, tuple(s for s, n in zip(both, param.shape, strict=False) if n <= h.max_precond_dim))


register(Method("soap", "SOAP: Adam in the eigenbasis of Shampoo's preconditioner", SOAP))
