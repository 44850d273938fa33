"""Adam, Adafactor, Lion and SGD as update rules: the weight optimizers that other methods build on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from ..engine.settings import Settings, beta, hyper
from . import moments


@dataclass(frozen=True)
class AdamSettings(Settings):
    """What Adam and most methods that build on it take."""

    beta1: float = beta(0.9, "decay of the momentum", key="betas", flags=("adam_beta1",))
    beta2: float = beta(0.999, "decay of the second moment", key="betas")
    eps: float = hyper(1e-8, "added to the root of the bias-corrected second moment", at_least=0.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay", at_least=0.0)


@dataclass(frozen=True)
class HuggingFaceAdamSettings(AdamSettings):
    """What Hugging Face's former AdamW takes, on which GaLore and AdamW-SN were built."""

    eps: float = hyper(1e-6, "added to the root of the second moment", at_least=0.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied after the step", at_least=0.0)
    correct_bias: bool = hyper(True, "whether moments are corrected for their start at zero; --no_correct_bias for not")


@dataclass(frozen=True)
class AdafactorSettings(Settings):
    """What Adafactor takes, as released; its three last switches exist to be refused."""

    default_lr: ClassVar[float | None] = None
    eps: tuple[float, float] = hyper(
        (1e-30, 1e-3), "added to squares, and (unused) to the scale of parameters", at_least=0.0, flag=False
    )
    clip_threshold: float = hyper(1.0, "largest root mean square of an update", above=0.0, flag=False)
    decay_rate: float = hyper(-0.8, "beta2 = 1 - step^decay_rate", at_most=0.0, flag=False)
    beta1: float | None = beta(0.0, "decay of the average of updates; 0 keeps none", flags=("adam_beta1",))
    weight_decay: float = hyper(0.0, "decoupled weight decay", at_least=0.0)
    scale_parameter: bool = hyper(False, "not supported", flag=False)
    relative_step: bool = hyper(False, "not supported", flag=False)
    warmup_init: bool = hyper(False, "not supported", flag=False)

    def check(self) -> None:
        if self.scale_parameter or self.relative_step or self.warmup_init:
            raise ValueError(
                "scale_parameter, relative_step and warmup_init must be False: give lr, and use a scheduler"
            )
        super().check()


@dataclass(frozen=True)
class LionSettings(Settings):
    """What Lion takes."""

    default_lr: ClassVar[float | None] = 1e-4
    beta1: float = beta(0.9, "weight of the momentum in the step", key="betas", flags=("adam_beta1",))
    beta2: float = beta(0.99, "decay of the momentum", key="betas")
    weight_decay: float = hyper(0.0, "decoupled weight decay, applied after the step", at_least=0.0)


@dataclass(frozen=True)
class WeightStep(UpdateRule):
    """A rule that may also run in a projected space: what must follow the lift is in `after_lift`."""

    def after_lift(self, direction: Tensor) -> Tensor:
        """Applied to the direction once it has the parameter's shape."""
        return direction

    def row_block(self, shape: torch.Size) -> int | None:
        return 1


@dataclass(frozen=True)
class AdamStep(WeightStep):
    """Adam (Kingma & Ba, arXiv 1412.6980) with decoupled decay.

    eps_inside False: sqrt(c2)/c1 * m / (sqrt(v) + eps), as in Hugging Face's and GaLore's AdamW.
    eps_inside True: (m/c1) / (sqrt(v/c2) + eps), as in torch, Adam-mini, LDAdam and bitsandbytes.
    decays_first chooses the order of decoupled weight decay.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    correct_bias: bool = True
    eps_inside: bool = False
    decays_first: bool = False

    @property
    def decay(self) -> Decay:  # type: ignore[override]
        return "before" if self.decays_first else "after"

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.beta1 else {}
        return {**specs, "exp_avg_sq": StateSpec(tuple(shape), "second_moment")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adam_scalars(step, self.beta1, self.beta2, self.correct_bias)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        m = moments.first_moment(state, grad, self.beta1)
        v = moments.second_moment(state, grad * grad, self.beta2)
        return moments.adam_direction(m, v, s, self.eps, self.eps_inside)


@dataclass(frozen=True)
class AdafactorStep(WeightStep):
    """Adafactor (Shazeer & Stern, arXiv 1804.04235) without parameter scaling or relative steps.

    With beta1 the average is taken of updates times lr, as released, so the rule applies lr itself.
    """

    decay: ClassVar[Decay] = "before"
    lr_inside: ClassVar[bool] = True
    eps: float = 1e-30
    clip_threshold: float = 1.0
    decay_rate: float = -0.8
    beta1: float | None = None

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.beta1 else {}
        if len(shape) < 2:
            return {**specs, "exp_avg_sq": StateSpec(tuple(shape), "second_moment")}
        specs["exp_avg_sq_row"] = StateSpec(tuple(shape[:-1]), "statistic")
        specs["exp_avg_sq_col"] = StateSpec((*shape[:-2], shape[-1]), "statistic")
        return specs

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adafactor_scalars(step, self.decay_rate)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        rows = state.get("exp_avg_sq_row")
        columns = state["exp_avg_sq"] if rows is None else state["exp_avg_sq_col"]
        update = moments.adafactor_update(grad, rows, columns, s, self.eps, self.clip_threshold) * s["lr"]
        return moments.first_moment(state, update, self.beta1) if self.beta1 else update

    def row_block(self, shape: torch.Size) -> int | None:
        return None


@dataclass(frozen=True)
class LionStep(WeightStep):
    """Lion (Chen et al., arXiv 2302.06675): the sign of an interpolation, taken after any lift."""

    beta1: float = 0.9
    beta2: float = 0.99

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        return {"exp_avg": StateSpec(tuple(shape), "moment")}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        update = torch.lerp(grad, state["exp_avg"], self.beta1)
        moments.first_moment(state, grad, self.beta2)
        return update

    def after_lift(self, direction: Tensor) -> Tensor:
        return direction.sign()


@dataclass(frozen=True)
class SignedLionStep(LionStep):
    """Lion on the parameter itself, where no lift follows."""

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        return self.after_lift(super().direction(grad, state, s, first))


@dataclass(frozen=True)
class SGDStep(WeightStep):
    """Plain gradient descent, without state."""

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        return grad
