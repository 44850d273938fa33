"""Which parameter gets which rule: first match wins, every parameter is covered, the result is printed as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from . import parts
from .roles import NamedParameter, describe, plain_name


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
    """Matches the weights of linear layers inside the layers of the network: attention and MLP."""
    return parameter.block and parameter.tensor.ndim == 2


BODY_MATRICES = "attention and MLP linears"
"""The label of routes with `body_matrix`."""

ALL_PARAMETERS = Route("all parameters", everything)
"""One group of everything."""


def body_routes(**keys: Any) -> tuple[Route, Route]:
    """The weights of linear layers inside attention and MLP modules get these group keys; the rest is a group apart."""
    return Route(BODY_MATRICES, body_matrix, keys), Route("rest", everything)


def param_groups(model: nn.Module, routes: Sequence[Route]) -> list[dict[str, Any]]:
    """Parameter groups of a model with names; with rates or decay by role, a group for each part of the model.

    Raises ValueError, with a table of the parameters, when one matches no route, and when the first route, which is
    what the method is about, matches nothing or misses most of the matrices in the model's layers.
    """
    options = parts.chosen()
    described = [replace(p, role=options.role(plain_name(p.name), p.role)) for p in describe(model)]
    parameters = _targeted(described, options.targets())
    if not parameters:
        raise ValueError("the model has no trainable parameters")
    matched = [next((route for route in routes if route.matches(p)), None) for p in parameters]
    for parameter, route in zip(parameters, matched, strict=True):
        if route is None:
            raise ValueError(f"no route covers {parameter.name} (role {parameter.role})")
    labels = [route.label for route in matched if route is not None]
    _check_coverage(parameters, labels, routes[0], bool(options.targets()))
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for route in routes:
        for parameter, label in zip(parameters, labels, strict=True):
            if label == route.label:
                part = parameter.part if options.distinguishes() else ""
                start = {"params": [], "route": label, **({"part": part} if part else {}), **route.settings}
                groups.setdefault((label, part), start)["params"].append((parameter.name, parameter.tensor))
    return list(groups.values())


def _targeted(parameters: list[NamedParameter], targets: Sequence[str]) -> list[NamedParameter]:
    """The parameters, with the matrices whose module names match the targets as the body, in place of what was found.

    Raises ValueError for a target that matches no matrix.
    """
    if not targets:
        return parameters
    hit = {
        target: [bool(re.search(target, plain_name(p.name))) and p.tensor.ndim == 2 for p in parameters]
        for target in targets
    }
    for target, matches in hit.items():
        if not any(matches):
            labels = ["" for _ in parameters]
            raise ValueError(
                f"target_modules={target!r} matches no matrix of this model:\n{parts.table(parameters, labels)}"
            )
    inside = [any(matches) for matches in zip(*hit.values(), strict=True)]
    return [replace(p, linear=i, block=i) for p, i in zip(parameters, inside, strict=True)]


def _check_coverage(parameters: list[NamedParameter], labels: list[str], first: Route, told: bool) -> None:
    """Raise ValueError when the first route matches nothing, or too little of what is no embedding and no head."""
    inside = [p for p in parameters if p.tensor.ndim >= 2 and p.role not in ("embedding", "head")]
    covered = sum(p.tensor.numel() for p, label in zip(parameters, labels, strict=True) if label == first.label)
    reached = {p.name for p, label in zip(parameters, labels, strict=True) if label == first.label}
    share = sum(p.tensor.numel() for p in inside if p.name in reached) / max(1, sum(p.tensor.numel() for p in inside))
    if covered and (told or not inside or share >= SMALLEST_SHARE):
        return
    what = (
        f"covers {share:.0%} of the matrices in this model's layers"
        if covered
        else "matches no parameter of this model"
    )
    raise ValueError(
        f"the method is for {first.label}, which {what}. Name the layers with target_modules (--target_modules), or "
        f"choose a method for parameters of any shape:\n{parts.table(parameters, labels)}"
    )


SMALLEST_SHARE = 0.5
"""Less of the matrices that are no embedding and no head, and the method would hardly be used."""
