"""What the comparisons with oracles draw from, and what they demand."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, settings
from hypothesis import strategies as st

from tests.optimizers.comparison import compare
from tests.optimizers.problems import Problem

FEW = settings(max_examples=12, deadline=None, derandomize=True)
sizes = st.integers(1, 20)
matrices = st.one_of(
    st.tuples(st.integers(8, 24), st.integers(1, 7)),  # tall
    st.tuples(st.integers(1, 7), st.integers(8, 24)),  # wide
    sizes.map(lambda n: (n, n)),  # square
    st.sampled_from([(13, 7), (7, 13), (1, 1), (1, 17), (17, 1), (2, 2)]),  # prime and one-element
)
vectors = st.integers(1, 20).map(lambda n: (n,))
seeds = st.integers(0, 2**20)
decays = st.sampled_from([0.0, 0.5, 3.0])
schedules = st.booleans()


def check(this: Problem, only_oracle: dict[str, Any] | None = None, **options: Any) -> None:
    result = compare(this, only_oracle, **options)
    assume(result.meaningful)
    assert result.deviation <= result.limit, result
