"""Schedules against oracles written from their definitions, and the ends that published harnesses get wrong."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_pretraining.errors import UsageError
from peft_pretraining.training.schedule import SCHEDULERS, ScheduleConfig, build_schedule


def config(scheduler: str, **more: object) -> ScheduleConfig:
    cycle = {"cycle_length": 10} if scheduler == "cosine_restarts" else {}
    return ScheduleConfig(scheduler=scheduler, **{**cycle, **more})


def curve(scheduler: str, updates: int, **more: object) -> list[float]:
    schedule = build_schedule(config(scheduler, **more), updates)
    return [schedule(update) for update in range(1, updates + 1)]


def published_cosine(step: int, warmup: int, updates: int, floor: float) -> float:
    """The decay of the published harness, at its zero-based step."""
    progress = (step - warmup) / max(1, updates - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def test_cosine_decays_as_published() -> None:
    expected = [published_cosine(step, 20, 200, 0.1) for step in range(20, 200)]
    assert curve("cosine", 200, warmup_steps=20)[20:] == pytest.approx(expected, rel=1e-12)


def test_linear_decays_to_zero_after_the_last_update() -> None:
    expected = [(200 - step) / 180 for step in range(20, 200)]
    assert curve("linear", 200, warmup_steps=20)[20:] == pytest.approx(expected, rel=1e-12)
    assert curve("linear", 200, warmup_steps=20, min_lr_ratio=0.5)[-1] == pytest.approx(0.5 + 0.5 / 180)


def test_restarts_climb_back_onto_the_cosine() -> None:
    got = curve("cosine_restarts", 40, warmup_steps=4, cycle_length=10, restart_warmup_steps=3)
    for start in (10, 20, 30):
        goal = published_cosine(start + 3, 4, 40, 0.1)
        assert got[start : start + 3] == pytest.approx([goal * k / 4 for k in (1, 2, 3)], rel=1e-12)
        assert got[start + 3] == pytest.approx(goal, rel=1e-12)
    assert got[4:10] == pytest.approx([published_cosine(step, 4, 40, 0.1) for step in range(4, 10)], rel=1e-12)


def test_wsd_is_flat_and_then_falls() -> None:
    got = curve("wsd", 50, warmup_steps=5)
    assert got[5:41] == [1.0] * 36
    assert got[40:] == pytest.approx([1 - k / 10 for k in range(10)])
    assert curve("wsd", 50, warmup_steps=5, decay_steps=4)[:47] == curve("constant", 50, warmup_steps=5)[:47]


def test_the_default_warmup_is_a_tenth() -> None:
    assert curve("constant", 100)[:12] == pytest.approx([k / 11 for k in range(1, 11)] + [1.0, 1.0])


@given(
    scheduler=st.sampled_from(SCHEDULERS),
    updates=st.integers(1, 300),
    floor=st.none() | st.floats(0, 1),
    warmup=st.none() | st.integers(0, 9),
)
def test_no_update_is_wasted_and_none_exceeds_the_peak(
    scheduler: str, updates: int, floor: float | None, warmup: int | None
) -> None:
    floor = None if scheduler == "constant" else floor
    warmup = None if warmup is not None and warmup >= updates else warmup
    cycle = {"cycle_length": max(10, updates // 3)} if scheduler == "cosine_restarts" else {}
    got = curve(scheduler, updates, min_lr_ratio=floor, warmup_steps=warmup, **cycle)
    assert len(got) == updates
    assert all(0 < factor <= 1 for factor in got)
    assert max(got) == 1.0


def test_updates_outside_the_run_are_programming_errors() -> None:
    schedule = build_schedule(config("linear"), 10)
    for update in (0, 11):
        with pytest.raises(ValueError, match="outside"):
            schedule(update)


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [
        ("cosine", {"cycle_length": 5}),
        ("linear", {"restart_warmup_steps": 5}),
        ("cosine", {"decay_steps": 5}),
        ("constant", {"min_lr_ratio": 0.5}),
        ("cosine_restarts", {"cycle_length": None}),
        ("linear", {"min_lr_ratio": 1.5}),
        ("linear", {"warmup_steps": -1}),
    ],
)
def test_flags_that_mean_nothing_are_refused(scheduler: str, more: dict) -> None:
    with pytest.raises(UsageError, match="--"):
        config(scheduler, **more)


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [
        ("linear", {"warmup_steps": 40}),
        ("wsd", {"warmup_steps": 30, "decay_steps": 20}),
        ("cosine_restarts", {"warmup_steps": 11}),
        ("cosine_restarts", {"restart_warmup_steps": 10}),
    ],
)
def test_phases_that_do_not_fit_are_refused(scheduler: str, more: dict) -> None:
    with pytest.raises(UsageError, match="--"):
        build_schedule(config(scheduler, **more), 40)
