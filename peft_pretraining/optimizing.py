"""The optimizer's flags, collected from the registry of `optimizers`: no method is named here.

A flag belongs to every method that has a hyperparameter of its name. Left out, it takes the default of the chosen
method; given to a method that does not have it, it is an error.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from optimizers.engine import registry
from optimizers.engine.options import EngineOptions
from peft_pretraining.config import flag
from peft_pretraining.errors import UsageError

_PAPER_NAMES = {"beta1": ("--adam_beta1",), "beta2": ("--adam_beta2",)}
_HYPERPARAMETERS, _ENGINE = "hyperparameters of the optimizer", "engine (every method)"


@dataclass(frozen=True)
class OptimizerConfig:
    """Which method updates the weights, and how. Concrete classes come from `optimizer_config_type`."""

    _argument_group_name: ClassVar[str] = "optimizer"

    optimizer: str = flag(help="the method, by name or alias")
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
        return self._filled(self.method.hyperparameters, {})

    def engine_options(self) -> dict[str, Any]:
        """Fields of `EngineOptions`, with what the method's name implies; empty for a library's optimizer."""
        return self._filled(EngineOptions, self.method.presets) if self.method.engine else {}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `optimizers.build_optimizer` beside name, model and lr."""
        return {**self.hyperparameters(), **self.engine_options()}

    def resolved(self) -> "OptimizerConfig":
        """The same configuration with the method's own defaults written out. Raises UsageError for a bad value."""
        for kind, values in ((self.method.hyperparameters, self.hyperparameters()), (EngineOptions, self.engine_options())):
            try:
                kind(**values)
            except ValueError as error:
                raise UsageError(f"--optimizer {self.optimizer}: {error}") from error
        return dataclasses.replace(self, **self.arguments())

    def unused(self) -> dict[str, list[str]]:
        """Flags that were given but that the chosen method does not have -> the methods that have them."""
        usable = set(applicable(self.method))
        return {
            name: [m.name for m in registry.methods() if name in applicable(m)]
            for name in method_flags()
            if getattr(self, name, None) is not None and name not in usable
        }

    def _filled(self, kind: type, implied: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            given = getattr(self, field.name, None)
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
    kinds = (method.hyperparameters, EngineOptions) if method.engine else (method.hyperparameters,)
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def method_flags() -> list[str]:
    """Names of all flags that depend on the method."""
    return list(dict.fromkeys(name for method in registry.methods() for name in applicable(method)))


@cache
def optimizer_config_type() -> type[OptimizerConfig]:
    """OptimizerConfig with a flag for every hyperparameter of every registered method; None is the method's default."""
    flags: dict[str, tuple[str, Any, Any]] = {}
    owners: dict[str, dict[str, Any]] = {}
    for method in registry.methods():
        hints = get_type_hints(method.hyperparameters)
        for field in dataclasses.fields(method.hyperparameters):
            owners.setdefault(field.name, {})[method.name] = field.default
            entry = _flag_field(field, hints[field.name], _HYPERPARAMETERS)
            if flags.setdefault(field.name, entry)[1] != entry[1]:
                raise TypeError(f"{method.name} gives --{field.name} another type than the methods before it")
    for name, defaults in owners.items():
        field = flags[name][2]
        metadata = {**field.metadata, "help": f"{field.metadata['help']} ({_defaults_text(defaults)})"}
        flags[name] = (*flags[name][:2], dataclasses.field(default=None, metadata=metadata))
    hints = get_type_hints(EngineOptions)
    for field in dataclasses.fields(EngineOptions):
        flags[field.name] = _flag_field(field, hints[field.name], _ENGINE, f" (default {field.default})")
    return dataclasses.make_dataclass(
        "CompleteOptimizerConfig", list(flags.values()), bases=(OptimizerConfig,), frozen=True, kw_only=True
    )


def _flag_field(field: Any, hint: Any, group: str, note: str = "") -> tuple[str, Any, Any]:
    others = [name if name.startswith("-") else f"--{name}" for name in field.metadata.get("flags", ())]
    aliases = [name for name in (*others, *_PAPER_NAMES.get(field.name, ())) if name != f"--no_{field.name}"]
    metadata = {"help": field.metadata["help"] + note, "group": group, "aliases": list(dict.fromkeys(aliases))}
    if field.metadata.get("choices"):
        metadata["choices"] = field.metadata["choices"]
    plain = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    return field.name, plain | None, dataclasses.field(default=None, metadata=metadata)


def _defaults_text(defaults: Mapping[str, Any]) -> str:
    """Which methods a flag belongs to, by default value: '0.9: adam, adamw; 0.908: ...'."""
    by_value: dict[str, list[str]] = {}
    for method, value in defaults.items():
        by_value.setdefault("required" if value is MISSING else str(value), []).append(method)
    return "default " + "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())
