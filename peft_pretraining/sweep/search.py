"""The search for one setting, such as the learning rate: which values to try next, given what came of others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """flag: the setting that is searched. budget: runs that every method gets, whatever they find.

    factor: between neighbouring values where a search goes beyond its first ones; None keeps the ratio of
    the two values at that edge.
    """

    flag: str = "lr"
    budget: int = 5
    factor: float | None = None


def next_values(search: Search, start: Sequence[float], losses: Mapping[float, float]) -> list[float]:
    """Values to try now; none once the budget is spent.

    start: the first values. losses: final loss of every value tried, infinite where the run diverged. First
    come the values of `start`; then, one at a time, a value beyond the edge where the best one lies, or,
    where it has neighbours on both sides, the geometric mean of it and its better neighbour.
    """
    untried = [value for value in start if value not in losses]
    if untried:
        return untried
    if len(losses) >= search.budget:
        return []
    values = sorted(losses)
    index = values.index(best_value(losses))
    if math.isinf(losses[values[index]]):
        return [_beyond(values, search.factor, upwards=False)]
    if index == len(values) - 1:
        return [_beyond(values, search.factor, upwards=True)]
    if index == 0:
        return [_beyond(values, search.factor, upwards=False)]
    neighbour = min(values[index - 1], values[index + 1], key=lambda value: losses[value])
    middle = _rounded(math.sqrt(values[index] * neighbour))
    return [] if middle in losses else [middle]


def best_value(losses: Mapping[float, float]) -> float:
    """The value with the lowest loss; the smaller one of equals."""
    return min(sorted(losses), key=lambda value: losses[value])


def at_edge(losses: Mapping[float, float]) -> bool:
    """Whether the best value is the smallest or largest one tried, so that a better one may lie beyond."""
    best = best_value(losses)
    return best in (min(losses), max(losses))


def _beyond(values: Sequence[float], factor: float | None, upwards: bool) -> float:
    """values: ascending."""
    if factor is None:
        pair = values[-2:] if upwards else values[:2]
        factor = pair[1] / pair[0] if len(pair) == 2 else 2.0
    return _rounded(values[-1] * factor if upwards else values[0] / factor)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
