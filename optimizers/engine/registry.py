"""The list of methods: names, aliases, hyperparameters; found by importing every module of the package."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

Build = Callable[[nn.Module, float, dict[str, Any], dict[str, Any]], torch.optim.Optimizer]


def hyper(default: Any, help: str, *, choices: tuple[str, ...] | None = None, flags: tuple[str, ...] = ()) -> Any:
    """A dataclass field that becomes a keyword argument and a command-line flag.

    flags: other names of the flag, as papers' users type them; a name "--no_x" negates a boolean.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "flags": flags})


def with_betas(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with beta1 and beta2 as the pair that optimizer classes call betas."""
    rest = {k: v for k, v in settings.items() if k not in ("beta1", "beta2")}
    return {**rest, "betas": (settings["beta1"], settings["beta2"])}


@dataclass(frozen=True)
class Method:
    """A method that `build_optimizer` and the command line can choose.

    hyperparameters: a dataclass whose fields (made with `hyper`) are what the method takes beside lr.
    build(model, lr, hyperparameters, options) makes the optimizer for a model.
    engine: whether the engine's options (state_dtype, execution, per_layer, ...) apply.
    presets: option values that the name implies.
    """

    name: str
    description: str
    hyperparameters: type
    build: Build
    aliases: tuple[str, ...] = ()
    engine: bool = True
    presets: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> dict[str, Any]:
        """Hyperparameters with their defaults."""
        return {f.name: f.default for f in fields(self.hyperparameters) if f.default is not MISSING}


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
