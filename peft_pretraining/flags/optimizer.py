"""The optimizer's part of a configuration: its flags are what the chosen method and the engine declare."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizers.engine import registry
from optimizers.engine.options import EngineOptions
from optimizers.engine.parts import RoutingOptions
from optimizers.engine.settings import Declared, Settings
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.catalogue import catalogue
from peft_pretraining.flags.choice import OptimizerFlags
from peft_pretraining.flags.fields import flag_values
from peft_pretraining.flags.parser import FlagParser
from peft_pretraining.flags.unknown import reject

_SAID = re.compile(r"(\w+)='?(.*?)'?: (it must|choose)")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(OptimizerFlags):
    """Which method updates the weights, and how. options: None for a class of another library."""

    settings: Settings
    options: EngineOptions | None
    routing: RoutingOptions = RoutingOptions()

    @property
    def method(self) -> registry.Method:
        """The registry's entry of the chosen method."""
        return registry.get(self.optimizer)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `optimizers.build_optimizer` beside name, model and lr."""
        values = flag_values(self)
        return {name: values[name] for name in flags_of(self.method)}


def choose(typed: Mapping[str, Any]) -> registry.Method | None:
    """The chosen method, a user's file run first that may bring it. Raises UsageError for an unknown name."""
    path, name = typed.get("optimizer_file"), typed.get("optimizer")
    try:
        if path is not None:
            registry.load_file(Path(path))
    except Exception as error:  # any fault of the user's file is the user's to mend
        raise UsageError(f"--optimizer_file {path}: {type(error).__name__}: {error}") from error
    try:
        return registry.get(name) if name is not None else None
    except ValueError as error:
        raise UsageError(f"--optimizer: {error}") from error


def users_methods() -> list[registry.Method]:
    """Methods that a file of the user's has brought."""
    return [method for method in registry.methods() if method.name not in {entry.name for entry in catalogue()}]


def sections_of(method: registry.Method) -> dict[str, type[Declared]]:
    """Heading in --help -> what is declared under it, for this method."""
    engine: dict[str, type[Declared]] = {"execution and state of the optimizer": EngineOptions} if method.engine else {}
    parts = {"parts of the model": RoutingOptions}
    return {f"hyperparameters of {method.name}": method.settings, **parts, **engine}


def flags_of(method: registry.Method) -> list[str]:
    """Names of the flags that a method takes."""
    return [name for section in sections_of(method).values() for name in section.names()]


def read(method: registry.Method, words: Sequence[str], shared: Sequence[str]) -> dict[str, Any]:
    """The method's flags in the words that the flags in `shared` left. Raises UsageError for any other word."""
    parser = FlagParser()
    for title, section in sections_of(method).items():
        parser.add_section(section, title)
    given, stray = parser.split(words)
    if stray:
        reject(stray, method.name, [*shared, *parser.flags])
    return given


def optimizer_config(method: registry.Method, given: Mapping[str, Any]) -> OptimizerConfig:
    """The configuration that these flags give. Raises UsageError for a value that is not allowed."""
    own = {name: given[name] for name in flags_of(method) if name in given}
    for name, implied in method.presets.items():
        if own.get(name, implied) != implied:
            raise UsageError(
                f"--{name} {own[name]} contradicts --optimizer {method.name}, whose name implies "
                f"{implied}: leave it out or choose the method without that in its name"
            )
    try:
        settings, options = method.sort(own)
        routing = RoutingOptions.from_arguments(own)
    except ValueError as error:
        raise UsageError(_SAID.sub(r"--\1 \2: \3", str(error))) from error
    shared = {name: given[name] for name in ("lr", "optimizer_file") if name in given}
    chosen = options if method.engine else None
    return OptimizerConfig(method.name, settings=settings, options=chosen, routing=routing, **shared)
