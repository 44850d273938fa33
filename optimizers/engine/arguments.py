"""The arguments of the optimizers' classes and the keys of their groups, as their settings declare them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from .options import EngineOptions
from .settings import Settings, near

_OF_GROUPS = ("params", "param_names", "lr", "initial_lr", "base_lr", "route", "part", "name", "lr_scale")


class Configured:
    """Base of classes whose arguments a settings class declares."""

    settings: ClassVar[type[Settings]] = Settings
    """The settings class, from the class's base."""
    presets: ClassVar[Mapping[str, Any]] = {}
    """Options that the class has where they are not given."""


def signature(kind: type[Configured]) -> inspect.Signature:
    """(params, lr, keys of the settings..., *, what the class itself takes by keyword, options of the engine)."""
    positional, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    own = {"lr": kind.settings.default_lr, **kind.settings.group_defaults()}
    options = {option.name: option.default for option in fields(EngineOptions)} | dict(kind.presets)
    first, *further = list(inspect.signature(kind.__init__).parameters.values())[1:]
    parameters = [inspect.Parameter(first.name, positional)]
    parameters += [inspect.Parameter(name, positional, default=value) for name, value in own.items()]
    if own["lr"] is None:
        parameters[1] = inspect.Parameter("lr", positional)
    parameters += [parameter for parameter in further if parameter.kind is named]
    parameters += [inspect.Parameter(name, named, default=value) for name, value in options.items()]
    return inspect.Signature(parameters)


def sort(
    kind: type[Configured], values: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a class as defaults of its groups and options of the engine.

    Raises TypeError, as Python does, for an unknown argument, one too many, or one given twice.
    """
    defaults = {"lr": kind.settings.default_lr, **kind.settings.group_defaults()}
    name, options = kind.__name__, dict(kind.presets)
    if len(values) > len(defaults):
        raise TypeError(f"{name} takes at most {len(defaults) + 1} arguments by position, {len(values) + 1} were given")
    given = dict(zip(defaults, values, strict=False))
    for key, value in keywords.items():
        if key in given:
            raise TypeError(f"{name} got {key} twice")
        if key in defaults:
            given[key] = value
        elif key in EngineOptions.names():
            options[key] = value
        else:
            raise TypeError(f"{name} has no argument {key}{near(key, [*defaults, *EngineOptions.names()])}")
    if {**defaults, **given}["lr"] is None:
        raise TypeError(f"{name} needs lr")
    return {**defaults, **given}, options


def check_group(kind: type[Configured], group: Mapping[str, Any]) -> None:
    """Raise ValueError for a value out of range, or a key that nothing reads."""
    if not float(group["lr"]) >= 0.0:
        raise ValueError(f"lr={group['lr']!r}: it must not be negative")
    kind.settings.from_group(group)
    for key in group:
        if key not in _OF_GROUPS and key not in kind.settings.group_defaults():
            raise ValueError(
                f"{kind.__name__}: unknown key {key!r} of a parameter group{near(key, kind.settings.group_defaults())}"
            )
