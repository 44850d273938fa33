"""The list of methods: names, aliases, settings; found by importing every module of the package."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .options import EngineOptions
from .parts import RoutingOptions, using
from .routing import ALL_PARAMETERS, Route, param_groups
from .settings import Settings

if TYPE_CHECKING:
    from .optimizer import EngineOptimizer

Build = Callable[[nn.Module, float, Any, dict[str, Any]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Method:
    """A method that `build_optimizer` and the command line can choose.

    kind: the optimizer's class, on the engine. routes: which parameters get which group keys.
    Or, where that does not serve: settings, the settings class, and build(model, lr, settings, options), which makes
    the optimizer for a model; options are keyword arguments that are fields of `EngineOptions`.
    engine: whether the engine's options (state_dtype, execution, per_layer, ...) apply.
    presets: option values that the name implies.
    """

    name: str
    description: str
    kind: type[EngineOptimizer[Any]] | None = None
    routes: Sequence[Route] = (ALL_PARAMETERS,)
    settings: type[Settings] = Settings
    build: Build | None = None
    aliases: tuple[str, ...] = ()
    engine: bool = True
    presets: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.kind is None) == (self.build is None):
            raise TypeError(f"{self.name}: a method has a class on the engine, or a function that builds it")
        if self.kind is not None:
            object.__setattr__(self, "settings", self.kind.settings)
            object.__setattr__(self, "presets", {**self.kind.presets, **self.presets})

    def make(
        self,
        model: nn.Module,
        lr: float,
        settings: Settings,
        options: EngineOptions,
        routing: RoutingOptions | None = None,
    ) -> torch.optim.Optimizer:
        """The optimizer for a model, its parameters routed to the method's rules."""
        routing = routing or RoutingOptions()
        with using(routing):
            optimizer = self._make(model, lr, settings, options)
        routing.apply(optimizer, getattr(settings, "weight_decay", 0.0))
        return optimizer

    def _make(self, model: nn.Module, lr: float, settings: Settings, options: EngineOptions) -> torch.optim.Optimizer:
        chosen = vars(options) if self.engine else {}
        if self.build is not None:
            return self.build(model, lr, settings, dict(chosen))
        assert self.kind is not None
        return self.kind(param_groups(model, self.routes), lr=lr, **{**settings.by_key(), **chosen})

    def defaults(self) -> dict[str, Any]:
        """Hyperparameters with their defaults, by name."""
        settings = self.settings()
        return {name: getattr(settings, name) for name in self.settings.names()}

    def options(self, arguments: Mapping[str, Any]) -> EngineOptions:
        """The engine's options with these arguments, and with what the method's name implies."""
        return EngineOptions(**{**self.presets, **arguments})

    def sort(self, arguments: Mapping[str, Any]) -> tuple[Settings, EngineOptions]:
        """Keyword arguments of `build_optimizer` as settings and options, without those of the routing.

        Raises ValueError for an argument that the method does not take, or a value that is not allowed.
        """
        given = {name: value for name, value in arguments.items() if name in EngineOptions.names()}
        if given and not self.engine:
            raise ValueError(
                f"{self.name} is a class of another library, which stores its state and takes its steps in its own "
                f"way: it has no {next(iter(given))}; leave it out or choose a method of this package"
            )
        own = {name: v for name, v in arguments.items() if name not in given and name not in RoutingOptions.ACCEPTED}
        return self.settings.by_name(own, self.name), self.options(given)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Add a method. Raises ValueError when another one has the name."""
    for name in (method.name, *method.aliases):
        if name in _METHODS:
            raise ValueError(f"two methods are called {name}")
        _METHODS[name] = method


def load_all() -> None:
    """Import every module of the package, so that each registers its methods."""
    package = sys.modules["optimizers"]
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"optimizers.{module.name}")


def load_file(path: str | Path) -> None:
    """Import a file that registers a method of one's own.

    Raises ValueError when the file is missing or registers nothing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    name = f"optimizers_user_{path.stem}"
    if name in sys.modules:
        return
    before = len(_METHODS)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if len(_METHODS) == before:
        del sys.modules[name]
        raise ValueError(f"{path} registers no method (call optimizers.register at its end)")


def methods() -> list[Method]:
    """All methods, by name."""
    load_all()
    return sorted({m.name: m for m in _METHODS.values()}.values(), key=lambda m: m.name)


def available() -> list[str]:
    """Names of all methods."""
    return [m.name for m in methods()]


def get(name: str) -> Method:
    """The method of this name or alias, in any case. Raises ValueError with near names."""
    load_all()
    method = _METHODS.get(name.lower())
    if method is None:
        near = difflib.get_close_matches(name.lower(), list(_METHODS), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(available())}"
        raise ValueError(f"unknown optimizer {name!r}: {hint}")
    return method
