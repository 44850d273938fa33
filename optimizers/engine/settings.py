"""Hyperparameters: declared once, typed and checked, for the class, the name, the flag and the rule.

A method has one settings class. Its fields are the keyword arguments of the method's class, the keys of its parameter
groups, the command line's flags and what a rule reads.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints


def hyper(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
    key: str | None = None,
    flag: bool = True,
    released: Any = MISSING,
) -> Any:
    """The declaration of one hyperparameter: a dataclass field.

    at_least, above, below, at_most: the range of a number, or of every number of a tuple. choices: the accepted words.
    flags: other names of the flag, as papers' users type them; a name "no_x" negates a switch.
    key: the name in parameter groups and in the class's constructor, where the released class has another; fields
    that share a key are the members of a tuple there (beta1 and beta2 of "betas").
    flag: False for what the constructor and groups take, but neither the command line nor `build_optimizer`.
    released: the class's default, where the signature of the released class has another than the method by name.
    """
    bounds = {"at_least": at_least, "above": above, "below": below, "at_most": at_most}
    metadata = {
        "help": help,
        "choices": choices,
        "flags": flags,
        "key": key,
        "flag": flag,
        "released": default if released is MISSING else released,
        "bounds": {name: bound for name, bound in bounds.items() if bound is not None},
    }
    return field(default=default, metadata=metadata)


beta = partial(hyper, at_least=0.0, below=1.0)
"""The declaration of a decay rate: at least 0 and below 1."""

_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "below": ("below", lambda value, bound: value < bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
}


@dataclass(frozen=True)
class Declared:
    """Base of classes whose fields are made by `hyper`. Raises ValueError for a value that is not allowed."""

    def __post_init__(self) -> None:
        for declared in fields(self):
            _check(declared, getattr(self, declared.name), _types(type(self))[declared.name])
        self.check()

    def check(self) -> None:
        """Raise ValueError for values that contradict each other."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all fields that are flags and arguments by name."""
        return tuple(declared.name for declared in fields(cls) if declared.metadata["flag"])

    @classmethod
    def by_name(cls, arguments: Mapping[str, Any], owner: str) -> Self:
        """The settings with these arguments, the others at their defaults.

        Raises ValueError, in the name of the owner, for an argument that is none of them.
        """
        for name in arguments:
            if name not in cls.names():
                raise ValueError(f"{owner} does not take {name}{near(name, cls.names())}")
        return cls(**arguments)


@dataclass(frozen=True)
class Settings(Declared):
    """Base of the settings classes of methods."""

    default_lr: ClassVar[float | None] = 1e-3
    """The class's default learning rate, or None: it must be given, as it is by name and on the command line."""

    @classmethod
    def group_defaults(cls) -> dict[str, Any]:
        """Keys of parameter groups, which are keyword arguments of the class, with the class's defaults, in order."""
        return {key: _packed([f.metadata["released"] for f in members]) for key, members in _members(cls).items()}

    def by_key(self) -> dict[str, Any]:
        """The values under their keys: what a parameter group holds."""
        return {key: _packed([getattr(self, f.name) for f in m]) for key, m in _members(type(self)).items()}

    @classmethod
    def from_group(cls, group: Mapping[str, Any], hide: tuple[str, ...] = ()) -> Self:
        """The settings of a parameter group, checked; a missing key has its default. hide: fields to leave None.

        Raises ValueError for a value out of range, or a tuple of another length.
        """
        values: dict[str, Any] = {}
        group = {**cls.group_defaults(), **group}
        for key, members in _members(cls).items():
            value = group[key]
            if len(members) == 1:
                values[members[0].name] = tuple(value) if isinstance(value, list) else value
            elif not isinstance(value, tuple | list) or len(value) != len(members):
                raise ValueError(f"{key}={value!r}: it must be {len(members)} numbers")
            else:
                values.update(zip([member.name for member in members], value, strict=True))
        settings = cls(**values)
        for name in hide:
            object.__setattr__(settings, name, None)
        return settings


def near(name: str, candidates: Iterable[str]) -> str:
    """'; did you mean a or b?' for the closest candidates, or '; it takes ...' where none is close."""
    known = list(candidates)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else f"; it takes {', '.join(sorted(known)) or 'none'}"


def _members(kind: type[Declared]) -> dict[str, list[Field[Any]]]:
    """Key -> the fields that it holds."""
    members: dict[str, list[Field[Any]]] = {}
    for declared in fields(kind):
        members.setdefault(declared.metadata["key"] or declared.name, []).append(declared)
    return members


def _packed(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


_TYPES: dict[type, dict[str, tuple[type, ...]]] = {}


def _types(kind: type[Declared]) -> dict[str, tuple[type, ...]]:
    """Field -> the types of its values, None among them where it may be left open."""
    if kind not in _TYPES:
        _TYPES[kind] = {name: _alternatives(hint) for name, hint in get_type_hints(kind).items()}
    return _TYPES[kind]


def _alternatives(hint: Any) -> tuple[type, ...]:
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(get_origin(alternative) or alternative for alternative in alternatives)


def _check(declared: Field[Any], value: Any, types: tuple[type, ...]) -> None:
    """Raise ValueError for a value of another type or out of range; the message says what is allowed."""
    if value is None and type(None) in types:
        return
    said = f"{declared.name}={value!r}"
    if not _is_one_of(value, types):
        wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in types if kind is not type(None))
        raise ValueError(f"{said}: it must be {wanted}")
    choices = declared.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{said}: choose one of {', '.join(choices)}")
    bounds = declared.metadata["bounds"]
    for number in value if isinstance(value, tuple) else (value,):
        broken = isinstance(number, Real) and not math.isfinite(number)
        if broken or not all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items()):
            wanted = " and ".join(f"{_BOUNDS[name][0]} {bound:g}" for name, bound in bounds.items())
            raise ValueError(f"{said}: it must be {wanted or 'finite'}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _is_one_of(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in types:
        return False
    numbers_of = {int: (Integral,), float: (Real,)}
    return isinstance(value, tuple(kind for t in types for kind in numbers_of.get(t, (t,))))
