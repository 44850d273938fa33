"""Online Subspace Descent: GaLore whose basis learns by online PCA (Liang et al., arXiv 2408.12857).

Update 1 takes the basis P by SVD, as GaLore's `std`. At every later update the weight step uses the present P, then
P takes one step of its own optimizer on f = ||H P'P - H||_F^2 (right side, P is r x n) or ||P P'H - H||_F^2 (left,
P is m x r), H = G/||G||_F, with learning rate (1/T) lr_t/lr_0 (algorithm 1; lr_0 is the constructor's). Moments of
the weight optimizer are not rotated.

The gradient has a closed form that needs one large product S beyond GaLore's two, instead of autograd through an n x n
projector:

    right: R = G P'/g, S = R'G/g, grad f = 2 [(R'R) P + (PP' - 2I) S]
    left:  R = P'G/g, S = G R'/g, grad f = 2 [P (RR') + S (P'P - 2I)],    g = ||G||_F; g = 0 gives 0.

Its terms cancel, so these products and R's are float32 with TF32 off (in bfloat16, 77% of the signs are right).

The paper adds lambda ||PP' - I||^2, which the release omits: `proj_orthogonality`, default 0. Optimizers of P, by
proj_type suffix: none (AdamW, torch's defaults, weight decay 0.01 included), `_adam8bit`, `_lion`, `_adafactor`,
`_sgd`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .engine.rule import Scalars, State, StateSpec
from .galore import ProjectedStep
from .primitives import projection as pr
from .primitives.products import product
from .primitives.steps import AdafactorStep, AdamStep, LionStep, SGDStep, WeightStep

PREFIX = "basis_"


@dataclass(frozen=True)
class BasisOptimizer:
    """An optimizer of the basis: its rule, its weight decay and the format of its state."""

    rule: WeightStep
    weight_decay: float = 0.0
    format: str = "unquantized"


_ADAM = AdamStep(eps=1e-8, eps_inside=True, decays_first=True)
BASIS_OPTIMIZERS = {
    "continuous": BasisOptimizer(_ADAM, weight_decay=0.01),
    "continuous_adam8bit": BasisOptimizer(_ADAM, format="int8"),
    "continuous_lion": BasisOptimizer(LionStep(0.9, 0.99)),
    "continuous_adafactor": BasisOptimizer(AdafactorStep()),
    "continuous_sgd": BasisOptimizer(SGDStep()),
}


@dataclass(frozen=True)
class OnlineSubspaceStep(ProjectedStep):
    """A projected weight optimizer whose basis takes a step after every update but the first."""

    moves_basis: ClassVar[bool] = True

    @property
    def learner(self) -> BasisOptimizer:
        """The optimizer of the basis."""
        return BASIS_OPTIMIZERS[self.h.proj_type]

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = super().state(shape)
        learner = self.learner.rule.state(torch.Size(specs["basis"].shape))
        return {**specs, **{PREFIX + k: replace(v, format=self.learner.format) for k, v in learner.items()}}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        basis_lr = lr_ratio / self.h.update_proj_gap
        mine = self.learner.rule.scalars(max(step - 1, 1), lr_ratio)
        mine |= {"lr": basis_lr, "keep": 1.0 - basis_lr * self.learner.weight_decay}
        return {**super().scalars(step, lr_ratio), **{PREFIX + k: v for k, v in mine.items()}}

    def refresh_due(self, step: int, offset: int) -> bool:
        return False

    def compress(self, grad: Tensor, state: State) -> Tensor:
        return pr.project(grad, state["basis"], self.side)  # never narrow: `basis_gradient` needs it

    def learn(self, grad: Tensor, compressed: Tensor, state: State, s: Scalars, first: bool) -> None:
        if first:
            return
        basis, rule = state["basis"], self.learner.rule
        gradient = self.basis_gradient(grad, compressed, basis)
        mine = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
        scalars = {k.removeprefix(PREFIX): v for k, v in s.items() if k.startswith(PREFIX)}
        step = rule.after_lift(rule.direction(gradient, mine, scalars, first))
        step = step if rule.lr_inside else step * scalars["lr"]
        basis.copy_((basis * scalars["keep"] if self.learner.weight_decay else basis) - step)

    def basis_gradient(self, grad: Tensor, compressed: Tensor, basis: Tensor) -> Tensor:
        """Gradient of f (and of the orthogonality penalty) at the basis; same shape as the basis."""
        norm = torch.linalg.vector_norm(grad)
        inverse = torch.where(norm > 0, 1.0 / norm, torch.zeros_like(norm))
        r = compressed * inverse
        if self.side == "right":
            s = product(r.mT, grad) * inverse
            overlap = product(basis, basis.mT)
            result = 2.0 * (product(product(r.mT, r), basis) + product(overlap, s) - 2.0 * s)
            penalty = product(overlap, basis) - basis if self.h.proj_orthogonality else 0.0
        else:
            s = product(grad, r.mT) * inverse
            overlap = product(basis.mT, basis)
            result = 2.0 * (product(basis, product(r, r.mT)) + product(s, overlap) - 2.0 * s)
            penalty = product(basis, overlap) - basis if self.h.proj_orthogonality else 0.0
        return result + 4.0 * self.h.proj_orthogonality * penalty
