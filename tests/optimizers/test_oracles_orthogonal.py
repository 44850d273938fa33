"""Muon, Dion2, SCALE and SOAP follow their float64 oracles over shapes, settings, schedules and decay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optimizers.problems import random_problem
from tests.optimizers.strategies import check, decays, matrices, schedules, seeds

SOME = settings(max_examples=10, deadline=None, derandomize=True)


@pytest.mark.parametrize("normuon", [False, True])
@pytest.mark.parametrize("coefficients", ["newton_schulz", "polar_express"])
@SOME
@given(matrices, seeds, decays, schedules, st.booleans(), st.sampled_from(["original", "match_rms_adamw", None]))
def test_muon(
    coefficients: str,
    normuon: bool,
    shape: tuple[int, int],
    seed: int,
    decay: float,
    scheduled: bool,
    nesterov: bool,
    factor: str | None,
) -> None:
    groups = [{"params": ["w"]}, {"params": ["plain", "vector"], "use_muon": False}]
    settings = dict(coefficients=coefficients, normuon=normuon, nesterov=nesterov, adjust_lr_fn=factor)
    shapes = {"w": shape, "plain": shape, "vector": (7,)}
    check(random_problem("Muon", shapes, groups, seed, scheduled=scheduled, weight_decay=decay, **settings))


@SOME
@given(matrices, seeds, decays, st.sampled_from([1, 3, 7]))
def test_muon_with_another_number_of_iterations(shape: tuple[int, int], seed: int, decay: float, steps: int) -> None:
    check(random_problem("Muon", {"w": shape}, [{"params": ["w"]}], seed, weight_decay=decay, ns_steps=steps))


@pytest.mark.parametrize("polar_express", [True, False])
@SOME
@given(
    matrices,
    seeds,
    decays,
    schedules,
    st.sampled_from([0.07, 0.25, 0.5, 1.0]),
    st.sampled_from(["spectral_norm", "rms_norm", None]),
    st.sampled_from([0.0, 0.8]),
)
def test_dion2(
    polar_express: bool,
    shape: tuple[int, int],
    seed: int,
    decay: float,
    scheduled: bool,
    fraction: float,
    factor: str | None,
    ef_decay: float,
) -> None:
    groups = [
        {"params": ["w"]},
        {"params": ["plain"], "algorithm": "lion"},
        {"params": ["vector"], "algorithm": "adamw"},
    ]
    settings = dict(fraction=fraction, adjust_lr=factor, ef_decay=ef_decay, use_polar_express=polar_express)
    shapes = {"w": shape, "plain": shape, "vector": (7,)}
    check(random_problem("Dion2", shapes, groups, seed, scheduled=scheduled, weight_decay=decay, **settings))


@SOME
@given(matrices, seeds, decays, schedules, st.sampled_from([0.0, 0.9]), st.sampled_from([None, 0.03]))
def test_scale(
    shape: tuple[int, int], seed: int, decay: float, scheduled: bool, momentum: float, adam_lr: float | None
) -> None:
    groups = [
        {"params": ["body"], "param_type": "main_param"},
        {"params": ["embedding"], "param_type": "main_param", "col_dim": 0},
        {"params": ["head"], "param_type": "secondary_param"},
        {"params": ["vector"], "param_type": "oned_param"},
    ]
    shapes = {"body": shape, "embedding": shape, "head": shape, "vector": (7,)}
    settings = dict(wd=decay, momentum=momentum, adam_lr=adam_lr)
    check(random_problem("SCALE", shapes, groups, seed, scheduled=scheduled, **settings))


@SOME
@given(
    st.sampled_from([(6, 6), (9, 8), (7, 8), (1, 1), (5,), (20, 6), (5, 24)]),
    seeds,
    decays,
    schedules,
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.sampled_from([-1.0, 0.8]),
)
def test_soap(
    shape: tuple[int, ...],
    seed: int,
    decay: float,
    scheduled: bool,
    frequency: int,
    normalize: bool,
    shampoo_beta: float,
) -> None:
    """Long rectangles have a basis on the shorter side only: the other's would begin in an arbitrary null space."""
    settings = dict(precondition_frequency=frequency, normalize_grads=normalize, shampoo_beta=shampoo_beta)
    check(
        random_problem(
            "SOAP",
            {"w": shape},
            [{"params": ["w"]}],
            seed,
            scheduled=scheduled,
            weight_decay=decay,
            max_precond_dim=12,
            **settings,
        )
    )
