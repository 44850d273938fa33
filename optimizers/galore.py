"""GaLore: a weight optimizer in a low-rank space of the gradient (Zhao et al., arXiv 2403.03507).

Before updates 1, T+1, 2T+1, ... a basis is computed from the gradient by SVD (algorithm 2). The weight optimizer
sees the projected gradient R; its step is lifted and multiplied with `scale`. proj_type chooses the side: `std`
multiplies on the right when rows >= columns, else on the left; `reverse_std` the opposite; `left`, `right`; `full`
both; `random` uses the singular vectors of a random matrix. `continuous...` lives in online_subspace.py.

Deviations from the released code: mathematics in float32; a zero or non-finite gradient, or an SVD that fails,
keeps the old basis; the side is part of the rule instead of being guessed from shapes; bases are plain state
tensors. Optional: `basis_method="randomized"`, `stagger_refresh`, and `rotate_moments`, which carries the moments
into a new basis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .engine.optimizer import EngineOptimizer
from .engine.rule import Bases, Decay, Scalars, State, StateSpec, UpdateRule
from .primitives import projection as pr
from .primitives.steps import AdafactorStep, AdamStep, LionStep, SignedLionStep, WeightStep

SIDED_TYPES = ("std", "reverse_std", "left", "right", "random")
CONTINUOUS_TYPES = ("continuous", "continuous_adam8bit", "continuous_lion", "continuous_adafactor", "continuous_sgd")
PROJ_TYPES = (*SIDED_TYPES, "full", *CONTINUOUS_TYPES)


@dataclass(frozen=True)
class ProjectedStep(UpdateRule):
    """A weight optimizer inside one projection of a matrix, on the `side` where the basis multiplies.

    narrow: large products take bfloat16 operands, as weights, gradients and the stored basis are anyway.
    """

    compresses: ClassVar[bool] = True
    refreshes: ClassVar[bool] = True
    inner: WeightStep
    side: pr.Side
    rank: int
    gap: int = 200
    scale: float = 0.25
    basis_method: str = "svd"
    rotate_moments: bool = False
    random: bool = False
    narrow: bool = False

    @property
    def decay(self) -> Decay:  # type: ignore[override]
        return self.inner.decay

    @property
    def lr_inside(self) -> bool:  # type: ignore[override]
        return self.inner.lr_inside

    @property
    def lr_factor(self) -> float:
        return 1.0 if isinstance(self.inner, LionStep) else self.scale  # of which a sign keeps nothing

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        projected = torch.Size(pr.projected_shape(tuple(shape), self.rank, self.side))
        basis = StateSpec(pr.basis_shape(tuple(shape), self.rank, self.side), "basis")
        return {"basis": basis, **self.inner.state(projected)}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return self.inner.scalars(step, lr_ratio)

    def compress(self, grad: Tensor, state: State) -> Tensor:
        return pr.project(grad, state["basis"], self.side, self.narrow)

    def lift(self, coordinates: Tensor, state: State) -> Tensor:
        """The matrix with these coordinates in the basis."""
        return pr.lift(coordinates, state["basis"], self.side, self.narrow)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        step = self.inner.direction(grad, state, s, first)
        return self.inner.after_lift(self.lift(step, state) * self.scale)

    def due(self, step: int, offset: int) -> bool:
        return step == 1 or (step - 1 + offset) % self.gap == 0

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        source = torch.randn(grad.shape, generator=rng).to(grad.device) if self.random else grad
        basis = self._basis(source, self.side, rng)
        if self.rotate_moments:
            rotate(state, basis, self.side)
        state["basis"].copy_(basis)
        return True

    def _basis(self, matrix: Tensor, side: pr.Side, rng: torch.Generator) -> Tensor:
        if self.basis_method == "randomized":
            return pr.randomized_basis(matrix, self.rank, side, rng)
        return pr.singular_basis(matrix, self.rank, side)

    def settled(self, state: State) -> bool:
        return bool(state["basis"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], self.side)}


@dataclass(frozen=True)
class TwoSidedStep(ProjectedStep):
    """proj_type `full`: R = Ul' G Vr', lifted as Ul N Vr."""

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        r = pr.clamp_rank(tuple(shape), self.rank)
        return {
            "basis": StateSpec((shape[0], r), "basis"),
            "basis_right": StateSpec((r, shape[1]), "basis"),
            **self.inner.state(torch.Size((r, r))),
        }

    def compress(self, grad: Tensor, state: State) -> Tensor:
        inner = pr.project(grad, state["basis"], "left", self.narrow)
        return pr.project(inner, state["basis_right"], "right", self.narrow)

    def lift(self, coordinates: Tensor, state: State) -> Tensor:
        return pr.lift(pr.lift(coordinates, state["basis_right"], "right"), state["basis"], "left", self.narrow)

    def refresh(self, grad: Tensor, state: State, rng: torch.Generator) -> bool:
        if not grad.any():
            return False
        if self.basis_method == "randomized":
            left = self._basis(grad, "left", rng)
            right = self._basis(left.mT @ grad, "right", rng)
        else:
            left, right = pr.singular_bases(grad, self.rank)
        state["basis"].copy_(left)
        state["basis_right"].copy_(right)
        return True

    def settled(self, state: State) -> bool:
        return super().settled(state) and bool(state["basis_right"].any())

    def bases(self, state: State) -> Bases:
        return {"basis": (state["basis"], "left"), "basis_right": (state["basis_right"], "right")}


def rotate(state: State, new: Tensor, side: pr.Side) -> None:
    """Express the moments of the old basis in the new one, in place.

    m' = C m with C the change of basis; v' = |C^2 (v - m^2) + m'^2| elementwise: what LDAdam does (arXiv 2410.16103) to
    bias-corrected moments, here to the moments themselves.
    """
    old, m, v = state["basis"], state.get("exp_avg"), state.get("exp_avg_sq")
    change = old @ new.mT if side == "right" else new.mT @ old

    def apply(matrix: Tensor, c: Tensor) -> Tensor:
        return matrix @ c if side == "right" else c @ matrix

    if m is None:
        if v is not None:
            v.copy_(apply(v, change.square()).abs())
        return
    moved = apply(m, change)
    if v is not None:
        v.copy_((apply(v - m.square(), change.square()) + moved.square()).abs())
    m.copy_(moved)


def side_of(proj_type: str, shape: Iterable[int]) -> pr.Side:
    """The side on which a basis of this type multiplies a matrix of this shape."""
    rows, columns = shape
    if proj_type in ("left", "right"):
        return proj_type  # type: ignore[return-value]
    return "right" if (rows >= columns) != (proj_type == "reverse_std") else "left"


def projection_fields(group: dict[str, Any]) -> dict[str, Any]:
    """Fields that every projected rule takes from its parameter group."""
    method = group.get("basis_method", "svd")
    if method not in ("svd", "randomized"):
        raise ValueError(f"basis_method={method!r}: choose svd or randomized")
    fields = {"rank": group["rank"], "gap": group["update_proj_gap"], "scale": group["scale"]}
    return {**fields, "basis_method": method, "rotate_moments": group.get("rotate_moments", False)}


def _sided(inner: WeightStep, group: dict[str, Any], shape: torch.Size) -> ProjectedStep:
    kind = group["proj_type"]
    _refuse_orthogonality(group)
    if group.get("rotate_moments") and isinstance(inner, AdafactorStep):
        raise ValueError("rotate_moments: Adafactor's means of rows and columns cannot be carried into a new basis")
    return ProjectedStep(inner, side_of(kind, shape), random=kind == "random", **projection_fields(group))


def _refuse_orthogonality(group: dict[str, Any]) -> None:
    if group.get("proj_orthogonality"):
        raise ValueError(f"proj_orthogonality belongs to continuous bases, not to proj_type {group['proj_type']}")


def _two_sided(inner: WeightStep, group: dict[str, Any], shape: torch.Size) -> ProjectedStep:
    _refuse_orthogonality(group)
    if group.get("rotate_moments"):
        raise ValueError("rotate_moments is defined for one-sided projections, not for proj_type full")
    return TwoSidedStep(inner, "left", **projection_fields(group))


Factory = Callable[[WeightStep, dict[str, Any], torch.Size], ProjectedStep]
PROJECTIONS: dict[str, Factory] = {**dict.fromkeys(SIDED_TYPES, _sided), "full": _two_sided}
"""Rule factories by proj_type; online_subspace.py adds its own."""

GROUP_DEFAULTS = {"update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}


class ProjectedOptimizer(EngineOptimizer):
    """Base of the GaLore classes: matrices of groups with a `rank` are projected, everything else is not.

    Group keys: rank, update_proj_gap (200), scale (0.25), proj_type ("std"), basis_method ("svd"), rotate_moments.
    """

    def inner_rule(self, group: dict[str, Any], projected: bool) -> WeightStep:
        """The weight optimizer of a group."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if param_group.get("rank") is not None:
            for key, value in GROUP_DEFAULTS.items():
                param_group.setdefault(key, value)
            if param_group["proj_type"] not in PROJECTIONS:
                raise ValueError(f"proj_type={param_group['proj_type']!r}: choose one of {', '.join(PROJECTIONS)}")
        super().add_param_group(param_group)

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        projected = group.get("rank") is not None and param.ndim == 2
        inner = self.inner_rule(group, projected)
        if not projected:
            return inner
        narrow = self.takes_narrow_products(param)
        return replace(PROJECTIONS[group["proj_type"]](inner, group, param.shape), narrow=narrow)


class GaLoreAdamW(ProjectedOptimizer):
    """GaLore with AdamW as released: eps beside sqrt(v), decoupled decay after the step with the plain lr."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        **options: Any,
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias)
        super().__init__(params, defaults, options)

    def inner_rule(self, group: dict[str, Any], projected: bool) -> WeightStep:
        beta1, beta2 = group["betas"]
        return AdamStep(beta1, beta2, group["eps"], group["correct_bias"])


class GaLoreAdamW8bit(ProjectedOptimizer):
    """GaLore with 8-bit AdamW: bitsandbytes' formula (eps after the bias correction) on 8-bit moments."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        options.setdefault("state_dtype", "int8")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), options)

    def inner_rule(self, group: dict[str, Any], projected: bool) -> WeightStep:
        # bitsandbytes' own AdamW8bit, which serves unprojected parameters, decays before the step (0.50, CPU).
        beta1, beta2 = group["betas"]
        return AdamStep(beta1, beta2, group["eps"], eps_inside=True, decays_first=not projected)


class GaLoreAdafactor(ProjectedOptimizer):
    """GaLore with Adafactor; scale_parameter, relative_step and warmup_init are accepted as False."""

    def __init__(
        self,
        params: Iterable,
        lr: float,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
        relative_step: bool = False,
        warmup_init: bool = False,
        **options: Any,
    ) -> None:
        if scale_parameter or relative_step or warmup_init:
            raise ValueError(
                "scale_parameter, relative_step and warmup_init must be False: give lr, and use a scheduler"
            )
        defaults = dict(lr=lr, eps=eps, clip_threshold=clip_threshold, decay_rate=decay_rate, beta1=beta1)
        super().__init__(params, {**defaults, "weight_decay": weight_decay}, options)

    def inner_rule(self, group: dict[str, Any], projected: bool) -> WeightStep:
        return AdafactorStep(group["eps"][0], group["clip_threshold"], group["decay_rate"], group["beta1"] or None)


class GaLoreLion(ProjectedOptimizer):
    """GaLore with Lion: the sign is taken after the lift, so scale only matters through it."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay), options)

    def inner_rule(self, group: dict[str, Any], projected: bool) -> WeightStep:
        return (LionStep if projected else SignedLionStep)(*group["betas"])
