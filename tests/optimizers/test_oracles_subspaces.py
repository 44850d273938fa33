"""APOLLO, Fira and AdamW-SNSM follow their float64 oracles over shapes, ranks, refreshes, schedules and decay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optimizers.problems import Problem, random_problem
from tests.optimizers.strategies import check, decays, matrices, schedules, seeds

SOME = settings(max_examples=8, deadline=None, derandomize=True)
# Where a channel's R passes near zero and its momentum does not, the factor is huge: a rank of at least 2 keeps the
# comparison in float32 decided.
ranks = st.integers(2, 26)


def subspace(class_name: str, shape: tuple[int, int], seed: int, group: dict[str, Any], **more: Any) -> Problem:
    groups = [{"params": ["w"], **group}, {"params": ["plain", "vector"]}]
    return random_problem(class_name, {"w": shape, "plain": shape, "vector": (7,)}, groups, seed, **more)


@pytest.mark.parametrize("proj", ["random", "svd"])
@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@SOME
@given(matrices, ranks, seeds, decays, schedules, st.booleans(), st.booleans())
def test_apollo(
    proj: str,
    scale_type: str,
    shape: tuple[int, int],
    rank: int,
    seed: int,
    decay: float,
    scheduled: bool,
    front: bool,
    unlimited: bool,
) -> None:
    """A new projection before updates 1, 4 and 7."""
    group = {"rank": rank, "proj": proj, "scale_type": scale_type, "update_proj_gap": 3, "scale": 2.0}
    more = dict(weight_decay=decay, scheduled=scheduled, scale_front=front, disable_nl=unlimited)
    check(subspace("APOLLOAdamW", shape, seed, group, **more))


@SOME
@given(matrices, ranks, seeds, decays, schedules, st.sampled_from([0.25, 1.0]))
def test_fira(shape: tuple[int, int], rank: int, seed: int, decay: float, scheduled: bool, alpha: float) -> None:
    group = {"rank": rank, "alpha": alpha, "update_proj_gap": 3}
    check(subspace("FiraAdamW", shape, seed, group, weight_decay=decay, scheduled=scheduled))


@pytest.mark.parametrize("kind", ["published", "reset", "keep"])
@SOME
@given(matrices, ranks, seeds, decays, schedules, st.sampled_from(["heuristics", 8, 1, -2]))
def test_subspace_momentum(
    kind: str, shape: tuple[int, int], rank: int, seed: int, decay: float, scheduled: bool, subset: int | str
) -> None:
    """A new basis before updates 1, 3 and 6."""
    group = {"rank": rank, "subset_size": subset, "update_proj_gap": 3, "momentum_at_refresh": kind}
    check(subspace("AdamWSNSM", shape, seed, group, weight_decay=decay, scheduled=scheduled))
