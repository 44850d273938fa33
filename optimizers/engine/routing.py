"""Which parameter gets which rule: first match wins, every parameter is covered, the result is printed as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .roles import NamedParameter, describe


@dataclass(frozen=True)
class Route:
    """Parameters that match get the group settings. label names the route in logs."""

    label: str
    matches: Callable[[NamedParameter], bool]
    settings: dict[str, Any] = field(default_factory=dict)


def everything(_: NamedParameter) -> bool:
    """Matches every parameter."""
    return True


def body_matrix(parameter: NamedParameter) -> bool:
    """Matches the weights of linear layers inside attention and MLP modules."""
    return parameter.block and parameter.tensor.ndim == 2


BODY_MATRICES = "attention and MLP linears"
"""The label of routes with `body_matrix`."""

ALL_PARAMETERS = Route("all parameters", everything)
"""One group of everything."""


def body_routes(**keys: Any) -> tuple[Route, Route]:
    """The weights of linear layers inside attention and MLP modules get these group keys; the rest is a group apart."""
    return Route(BODY_MATRICES, body_matrix, keys), Route("rest", everything)


def param_groups(model: nn.Module, routes: Sequence[Route]) -> list[dict[str, Any]]:
    """Parameter groups of a model with names.

    Raises ValueError when a parameter matches no route, or when the first route, which is what the method is about,
    matches nothing.
    """
    chosen: dict[str, list] = {route.label: [] for route in routes}
    parameters = describe(model)
    if not parameters:
        raise ValueError("the model has no trainable parameters")
    for parameter in parameters:
        route = next((r for r in routes if r.matches(parameter)), None)
        if route is None:
            raise ValueError(f"no route covers {parameter.name} (role {parameter.role})")
        chosen[route.label].append((parameter.name, parameter.tensor))
    if not chosen[routes[0].label]:
        raise ValueError(
            f"no parameter of this model is {routes[0].label}; its linear layers are expected inside modules whose "
            "names contain attn, attention or mlp, as in Hugging Face models"
        )
    return [{"params": chosen[r.label], "route": r.label, **r.settings} for r in routes if chosen[r.label]]
