"""The optimizer's flags, collected from the registry of `optimizers`: no method is named here.

A flag belongs to every method that has a hyperparameter of its name. Left out, it takes the default of the
chosen method; given to a method that does not have it, it is an error. A method may answer to the name of
another's hyperparameter (momentum to --beta1): that flag then sets its own.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from optimizers.engine import registry
from optimizers.engine.options import EngineOptions
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag


@dataclass(frozen=True)
class OptimizerConfig:
    """Which method updates the weights, and how. Concrete classes come from `optimizer_config_type`."""

    _argument_group_name: ClassVar[str] = "optimizer"

    optimizer: str = flag(metavar="NAME", help="the method, by name or alias")
    lr: float = flag(1e-4, help="peak learning rate, reached after the warmup")
    optimizer_file: str | None = flag(
        None, metavar="FILE.py", help="a Python file that registers a method of your own; its code is run"
    )

    def __post_init__(self) -> None:
        method = chosen_method(self.optimizer)
        object.__setattr__(self, "optimizer", method.name)
        if not self.lr > 0 or self.lr == float("inf"):
            raise UsageError(f"--lr {self.lr}: a learning rate is a positive number")

    @property
    def method(self) -> registry.Method:
        """The registry's entry of the chosen method."""
        return registry.get(self.optimizer)

    def hyperparameters(self) -> dict[str, Any]:
        """What the method takes beside lr, defaults filled in."""
        return self._filled(self.method.settings, {}, synonyms(self.method))

    def engine_options(self) -> dict[str, Any]:
        """Fields of `EngineOptions`, with what the method's name implies; empty for a library's optimizer."""
        return self._filled(EngineOptions, self.method.presets, {}) if self.method.engine else {}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `optimizers.build_optimizer` beside name, model and lr."""
        return {**self.hyperparameters(), **self.engine_options()}

    def resolved(self) -> "OptimizerConfig":
        """The same with the method's defaults written out. Raises UsageError for a bad value."""
        for kind, values in (
            (self.method.settings, self.hyperparameters()),
            (EngineOptions, self.engine_options()),
        ):
            try:
                kind(**values)
            except ValueError as error:
                raise UsageError(f"--optimizer {self.optimizer}: {error}") from error
        settled = dict.fromkeys(synonyms(self.method).values())
        return dataclasses.replace(self, **{**settled, **self.arguments()})

    def unused(self) -> dict[str, list[str]]:
        """Flags that were given but that the chosen method does not have -> the methods that have them."""
        usable = set(applicable(self.method))
        return {
            name: [m.name for m in registry.methods() if name in applicable(m)]
            for name in method_flags()
            if getattr(self, name, None) is not None and name not in usable
        }

    def _given(self, name: str, synonym: str | None) -> Any:
        own, other = getattr(self, name, None), getattr(self, synonym, None) if synonym else None
        if None not in (own, other) and own != other:
            raise UsageError(f"--{name} {own} and --{synonym} {other} set the same value: leave one of them out")
        return other if own is None else own

    def _filled(self, kind: type, implied: Mapping[str, Any], synonyms: Mapping[str, str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in flagged(kind):
            given = self._given(field.name, synonyms.get(field.name))
            if given is not None:
                values[field.name] = given
            elif field.name in implied:
                values[field.name] = implied[field.name]
            elif field.default is not MISSING:
                values[field.name] = field.default
            elif field.default_factory is not MISSING:
                values[field.name] = field.default_factory()
        return values


def chosen_method(name: str) -> registry.Method:
    """The method of this name or alias. Raises UsageError with near names."""
    try:
        return registry.get(name)
    except ValueError as error:
        raise UsageError(f"--optimizer: {error}") from error


def load_method_file(path: str) -> None:
    """Run a user's file, which registers a method. Raises UsageError when it cannot."""
    try:
        registry.load_file(Path(path))
    except Exception as error:  # any fault of the user's file is the user's to mend
        raise UsageError(f"--optimizer_file {path}: {type(error).__name__}: {error}") from error
    optimizer_config_type.cache_clear()


def applicable(method: registry.Method) -> list[str]:
    """Names of the flags that a method takes."""
    return [field.name for field in _fields(method)] + list(synonyms(method).values())


def spellings(method: registry.Method) -> set[str]:
    """The flags that a method takes, under all their names."""
    return {*applicable(method), *(name for field in _fields(method) for name in _other_names(field))}


def _fields(method: registry.Method) -> list[Any]:
    kinds = (method.settings, EngineOptions) if method.engine else (method.settings,)
    return [field for kind in kinds for field in flagged(kind)]


def flagged(kind: type) -> list[Any]:
    """The fields of a settings class that are flags."""
    return [field for field in dataclasses.fields(kind) if field.metadata["flag"]]


def method_flags() -> list[str]:
    """Names of all flags that depend on the method."""
    return list(dict.fromkeys(name for method in registry.methods() for name in applicable(method)))


def synonyms(method: registry.Method) -> dict[str, str]:
    """Hyperparameters of this method that answer to the name of another method's: own -> other name."""
    names = _hyperparameter_names()
    answers = {field.name: names & set(_other_names(field)) for field in flagged(method.settings)}
    return {name: min(others) for name, others in answers.items() if others}


def _hyperparameter_names() -> set[str]:
    return {field.name for method in registry.methods() for field in flagged(method.settings)}


def _other_names(field: Any) -> list[str]:
    """Further names of a hyperparameter's flag; the negation of a switch is made by the parser."""
    names = [name.lstrip("-") for name in field.metadata.get("flags", ())]
    return [name for name in names if name != f"no_{field.name}"]


@cache
def optimizer_config_type() -> type[OptimizerConfig]:
    """OptimizerConfig with a flag for every hyperparameter of every method; None is the method's default."""
    names = ", ".join(registry.available())
    method = flag(metavar="NAME", help=f"the method, by name or alias: {names}")
    flags: dict[str, Any] = {"optimizer": ("optimizer", str, method)}
    aliases, uses, choices = _flag_names(), _uses(), _choices()
    for method in registry.methods():
        for name, (kind, metadata) in _typed_fields(method.settings).items():
            if flags.setdefault(name, (name, kind, None))[1] != kind:
                raise TypeError(f"{method.name} gives --{name} another type than the methods before it")
            metadata |= {
                "group": "hyperparameters of the optimizer",
                "aliases": aliases[name],
                "help": uses[name],
                "choices": choices[name],
            }
            if flags[name][2] is None:
                flags[name] = (name, kind, dataclasses.field(default=None, metadata=metadata))
    for name, (kind, metadata) in _typed_fields(EngineOptions).items():
        metadata["group"] = "execution and state of the optimizer"
        metadata["help"] += f" (default {EngineOptions.__dataclass_fields__[name].default})"
        flags[name] = (name, kind, dataclasses.field(default=None, metadata=metadata))
    return dataclasses.make_dataclass(
        "CompleteOptimizerConfig", list(flags.values()), bases=(OptimizerConfig,), frozen=True, kw_only=True
    )


def _typed_fields(kind: type) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Field name -> its type or None, and its help and choices."""
    hints, found = get_type_hints(kind), {}
    for field in flagged(kind):
        plain = next((t for t in get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        metadata = {key: field.metadata[key] for key in ("help", "choices") if field.metadata.get(key)}
        found[field.name] = (plain | None, metadata)
    return found


def _flag_names() -> dict[str, list[str]]:
    """Hyperparameter -> further names of its flag over all methods."""
    names: dict[str, list[str]] = {name: [] for name in _hyperparameter_names()}
    for method in registry.methods():
        answers_to = synonyms(method)
        for field in flagged(method.settings):
            owner = answers_to.get(field.name, field.name)
            new = [f"--{name}" for name in _other_names(field) if name not in names]
            names[owner] += [name for name in new if name not in names[owner]]
    return names


def _choices() -> dict[str, list[Any]]:
    """Hyperparameter -> what some method accepts; empty where a method accepts anything."""
    found: dict[str, list[Any]] = {}
    free: set[str] = set()
    for method in registry.methods():
        for field in flagged(method.settings):
            own = field.metadata.get("choices") or ()
            known = found.setdefault(field.name, [])
            known += [choice for choice in own if choice not in known]
            free |= set() if own else {field.name}
    return {name: [] if name in free else known for name, known in found.items()}


def _uses() -> dict[str, str]:
    """Hyperparameter -> what it means, where methods differ in words or default for each of them."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for method in registry.methods():
        for field in flagged(method.settings):
            default = "required" if field.default is MISSING else f"default {field.default}"
            found.setdefault(field.name, {}).setdefault((field.metadata["help"], default), []).append(method.name)
    return {
        name: "; ".join(f"{text} ({default}: {', '.join(names)})" for (text, default), names in uses.items())
        for name, uses in found.items()
    }
