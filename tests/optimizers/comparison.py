"""The class under test and the oracles side by side, update by update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimizers.apollo import ApolloStep
from tests.optimizers.problems import Problem, build, give_gradients
from tests.oracles.apollo import Apollo
from tests.oracles.cases import oracle_for
from tests.oracles.fira import Fira
from tests.oracles.galore import Basis, GaLore, sides
from tests.oracles.ldadam import LDAdam
from tests.oracles.online_subspace import OnlineSubspace
from tests.oracles.parameter import ParameterOracle
from tests.oracles.subspace_momentum import SubspaceMomentum

FLOOR = 2e-5
"""Every weight is stored in float32: 8 roundings of 6e-8 on weights of 0.5 that move by 0.05 are 1e-5."""
AMPLIFICATION = 20
"""How far another order of float32 operations may deviate, in units of what the oracle's own float32 run does. The two
runs draw rounding errors from one distribution; the maximum over a few hundred entries is within this factor."""
ILL_CONDITIONED = 1e-3
"""A problem whose answer in float32 is off by more than this proves nothing, and is not counted."""
UNDECIDED = 1e-5
"""A sign is noise where its argument is below this, relative to the largest one (64 float32 roundings of 6e-8, and
what a basis adds to them)."""


@dataclass
class Comparison:
    """Deviations from the float64 oracle, as fractions of the distance moved.

    deviation: of the class. rounding: of the oracle's own float32 run. decided: False when a step hung on the sign of
    rounding noise, so that two right answers may differ.
    """

    deviation: float
    rounding: float
    decided: bool

    @property
    def meaningful(self) -> bool:
        return self.decided and self.rounding <= ILL_CONDITIONED

    @property
    def limit(self) -> float:
        return max(FLOOR, AMPLIFICATION * self.rounding)


def basis_in(state: dict[str, Tensor], proj_type: str, shape: torch.Size) -> Basis:
    """The basis that the class under test holds in its state."""
    left, right = sides(proj_type, shape)
    if left and right:
        return Basis(state["basis"].float().clone(), state["basis_right"].float().clone())
    basis = state["basis"].float().clone()
    return Basis(basis, None) if left else Basis(None, basis)


def _drawn(managed: Any, gradient: Tensor) -> Tensor | None:
    """The random projection with which the class under test made its last update."""
    rule = managed.rule
    if not isinstance(rule, ApolloStep) or rule.refreshes:
        return managed.state.get("basis")
    return rule.projection(gradient, managed.state, rule.scalars(managed.step, 1.0))


def _feed(oracle: ParameterOracle, gradient: Tensor, lr: float, managed: Any) -> None:
    state = managed.state
    if isinstance(oracle, Apollo | Fira | SubspaceMomentum):
        oracle.given = _drawn(managed, gradient)
    if isinstance(oracle, GaLore):
        oracle.step(gradient, lr, basis_in(state, oracle.proj_type, oracle.weight.shape))
        return
    if isinstance(oracle, LDAdam) and oracle.proj_method == "given":
        basis = state["basis"].to(oracle.dtype).clone()
        oracle.given = basis.T if oracle.right else basis
    oracle.step(gradient, lr)


def _distance(oracle: ParameterOracle, weight: Tensor, start: Tensor) -> float:
    """Relative to the distance moved; entries whose Lion sign was ever undecided are left out."""
    margin = getattr(oracle, "closest_to_flip", None)
    decided = torch.ones_like(oracle.weight, dtype=torch.bool) if margin is None else margin > UNDECIDED
    moved = (oracle.weight - start.double()).abs().max().clamp_min(1e-8)
    distance = ((weight.double() - oracle.weight).abs() * decided).max() / moved
    return distance.item() if torch.isfinite(weight).all() else float("inf")


def compare(problem: Problem, only_oracle: dict[str, Any] | None = None, **options: Any) -> Comparison:
    """Run the problem with the class and with float64 and float32 oracles. `options` go to the class."""
    optimizer, parameters = build(problem, **options)
    settings = {name: {**problem.settings(name), **(only_oracle or {})} for name in problem.start}
    oracles, single = (
        {n: oracle_for(problem.class_name, n, p, settings[n], dtype) for n, p in problem.start.items()}
        for dtype in (torch.float64, torch.float32)
    )
    result = Comparison(0.0, 0.0, True)
    for update, gradients in enumerate(problem.gradients):
        for group in optimizer.param_groups:
            group["lr"] = problem.lr(update)
        give_gradients(parameters, gradients, problem.adds_to_gradient)
        optimizer.step()
        optimizer.zero_grad()
        for name, gradient in gradients.items():
            parameter, start = parameters[name], problem.start[name]
            for oracle in (oracles[name], single[name]):
                _feed(oracle, gradient, problem.lr(update), optimizer.managed[parameter])
            ours = _distance(oracles[name], parameter.detach(), start)
            result.deviation = max(result.deviation, ours)
            result.rounding = max(result.rounding, _distance(oracles[name], single[name].weight, start))
    result.decided = all(
        oracle.basis_optimizer.closest_to_flip > UNDECIDED
        for oracle in oracles.values()
        if isinstance(oracle, OnlineSubspace)
    )
    return result
