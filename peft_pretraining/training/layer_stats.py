"""--log_details: figures of every layer, on the updates where they are due."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from optimizers import Session
from optimizers.engine.diagnostics import Observer, changes, rms, second_moments, short_name, to_host
from optimizers.engine.optimizer import EngineOptimizer

_TOTALS = ("weight_norm", "update_norm")
_SECOND_MOMENT = "exp_avg_sq"  # how torch and transformers call it


class Details:
    """Figures of an optimizer's updates, as columns KIND/LAYER of the metrics.

    every: updates between two looks at every layer; the first update is looked at too. Bases that a refresh replaces
    are looked at when it happens. names: the name of every parameter that is trained.

    Nothing of the training is changed. A look costs a copy of one weight after another (with an optimizer of a
    library: of all at once) and, for projected matrices, a decomposition of their projected gradients.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], every: int) -> None:
        self._every = every
        self._optimizer = optimizer
        self._observer: Observer | _StepObserver
        if isinstance(optimizer, EngineOptimizer):
            self._observer = optimizer.observe()
        else:
            self._observer = _StepObserver(optimizer, names)

    def begin(self, update: int) -> None:
        """Before the update of this number, counted from 1."""
        self._observer.whole = update == 1 or update % self._every == 0

    def end(self) -> dict[str, float]:
        """After the update: its figures, by column; waits for the device where there are any."""
        figures = self._observer.take()
        for kind in _TOTALS:
            parts = [value for name, value in figures.items() if name.startswith(f"{kind}/")]
            if parts:
                figures[f"{kind}/total"] = math.hypot(*parts)
        if self._observer.whole and isinstance(self._optimizer, EngineOptimizer):
            rates = self._optimizer.effective_learning_rates()
            figures |= {f"lr/{kind}": rate for kind, rate in rates.items()}
        return figures


class _StepObserver:
    """Looks at all parameters of any torch optimizer before and after its step."""

    def __init__(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
        self.whole = False
        self._names = {param: short_name(name) for param, name in names.items()}
        self._figures: dict[str, Tensor] = {}
        self._before: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self._look_before)
        optimizer.register_step_post_hook(self._look_after)

    def take(self) -> dict[str, float]:
        """The figures since the last call, by name; waits for the device once."""
        figures, self._figures = self._figures, {}
        return to_host(figures)

    def _look_before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.whole:
            return
        for param, name in self._names.items():
            if param.grad is not None:
                self._figures[f"gradient_rms/{name}"] = rms(param.grad)
                self._before[param] = param.detach().clone()

    def _look_after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for param, before in self._before.items():
            name, state = self._names[param], optimizer.state[param]
            self._figures |= changes(name, before, param.detach())
            found = {k: v for k, v in state.items() if k.startswith(_SECOND_MOMENT) and v is not None and v.numel()}
            self._figures |= second_moments(name, found)
        self._before = {}


def warn_of_gaps(session: Session, micro_batches: int) -> None:
    """Says which figures cannot be had, because the whole gradient of a layer is never on this process."""
    if session.hides_gradients():
        logger.info(
            "--log_details: gradients travel projected, so gradient_rms, captured_energy and effective_rank of "
            "projected layers are known at refreshes only; with --grad_clipping (and no --per_layer) they travel whole"
        )
    if session.in_backward and micro_batches > 1:
        logger.info("--log_details: --per_layer with several micro-batches keeps no whole gradient to look at")
