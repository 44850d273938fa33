"""Trajectories recorded from the published reference implementations, in float32.

The oracles are held against them first: everything else in this folder compares the classes with the oracles, so
the oracles must themselves be proven. The limits travel with the recordings (fractions of the distance moved).
"""

from pathlib import Path

import pytest

from tests.optimizers.problems import deviation, follow, follow_oracle, load_recorded, recorded_paths

PATHS = list(recorded_paths())


def identify(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_recordings_are_here() -> None:
    assert len(PATHS) == 55


@pytest.mark.parametrize("path", PATHS, ids=identify)
def test_oracle_follows_recording(path: Path) -> None:
    problem = load_recorded(path)
    assert deviation(problem, follow_oracle(problem), problem.recorded) <= problem.limit


@pytest.mark.parametrize("path", PATHS, ids=identify)
def test_class_follows_recording(path: Path) -> None:
    problem = load_recorded(path)
    assert deviation(problem, follow(problem), problem.recorded) <= problem.limit
