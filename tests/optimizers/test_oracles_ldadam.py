"""LDAdam follows its float64 oracle; limits are measured as in test_oracles.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.optimizers.problems import Problem, random_problem
from tests.optimizers.strategies import FEW, check, decays, matrices, schedules, seeds
from tests.oracles.cases import oracle_for


def ldadam(shape: tuple[int, int], rank: int, seed: int, **arguments: Any) -> Problem:
    groups = [
        {"params": ["plain", "vector"], "enable_lowrank": False},
        {"params": ["w"], "enable_lowrank": True, "rank": rank, "rho": 0.8},
    ]
    this = random_problem("LDAdamW", {"w": shape, "plain": shape, "vector": shape[:1]}, groups, seed, **arguments)
    this.adds_to_gradient = True
    return this


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("method", ["power_iteration", "svd"])
@FEW
@given(shape=matrices, rank=st.integers(1, 26), seed=seeds, decay=decays, scheduled=schedules)
def test_ldadam(
    method: str, feedback: bool, shape: tuple[int, int], rank: int, seed: int, decay: float, scheduled: bool
) -> None:
    check(
        ldadam(
            shape,
            rank,
            seed,
            weight_decay=decay,
            scheduled=scheduled,
            proj_method=method,
            error_feedback=feedback,
        )
    )


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("shape", [(14, 6), (6, 14), (9, 9)])
def test_ldadam_with_randomized_svd(feedback: bool, shape: tuple[int, int]) -> None:
    """The oracle takes the drawn basis; that it is a good one is for the basis's own test."""
    this = ldadam(shape, 4, 8, weight_decay=0.5, proj_method="svd_lowrank", error_feedback=feedback)
    check(this, only_oracle={"proj_method": "given"})


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("shape", [(14, 6), (6, 14)])
def test_ldadam_where_the_carried_variance_is_negative(feedback: bool, shape: tuple[int, int]) -> None:
    """Growing gradients and a short momentum make (m/c1)^2 exceed v/c2: the sum in the change of basis turns negative,
    and its absolute value is what the paper keeps."""
    this = ldadam(shape, 4, 8, error_feedback=feedback, betas=(0.2, 0.99))
    for update, gradients in enumerate(this.gradients):
        gradients["w"] *= 2.0**update
    oracle = oracle_for("LDAdamW", "w", this.start["w"], this.settings("w"))
    for update, gradients in enumerate(this.gradients):
        oracle.step(gradients["w"], this.lr(update))
    assert oracle.smallest_carried < 0
    check(this)
