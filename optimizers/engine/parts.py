"""Rates, decay and targets by role: settings that every method takes, declared once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .roles import NamedParameter
from .settings import Declared, hyper

EXCLUDABLE = {
    "norms": ("norm",),
    "biases": ("bias",),
    "embeddings": ("embedding",),
    "heads": ("head",),
    "vectors": ("norm", "bias", "vector"),
}
"""Words of decay_exclude -> the parts that they name."""


@dataclass(frozen=True)
class RoutingOptions(Declared):
    """Which parameters are the body, and what differs between parts of a model. Raises ValueError for a bad value."""

    ACCEPTED: ClassVar[tuple[str, ...]] = (
        "target_modules",
        "targets",
        "roles",
        "decay_exclude",
        "embedding_lr_ratio",
        "head_lr_ratio",
        "vector_lr_ratio",
    )

    target_modules: str | None = hyper(
        None,
        "the layers that the method is for, where the model's own are not found: regular expressions of module names, "
        "separated by spaces (attn mlp)",
    )
    decay_exclude: str | None = hyper(
        None,
        f"parts of the model without weight decay, separated by commas: {', '.join(EXCLUDABLE)}, or none. Default: as "
        "the method's paper",
    )
    embedding_lr_ratio: float = hyper(1.0, "learning rate of the embedding / lr", above=0.0)
    head_lr_ratio: float = hyper(1.0, "learning rate of the output head / lr", above=0.0)
    vector_lr_ratio: float = hyper(1.0, "learning rate of norms, biases and other vectors / lr", above=0.0)
    roles: Mapping[str, str] | None = hyper(
        None, "regular expression of a parameter's name -> its role, where it is not found", flag=False
    )

    def check(self) -> None:
        for word in self._words():
            if word not in EXCLUDABLE and word != "none":
                raise ValueError(f"decay_exclude={word!r}: choose among {', '.join(EXCLUDABLE)}, none")
        for pattern in self.targets():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"target_modules={pattern!r} is no regular expression: {error}") from error

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> RoutingOptions:
        """From those of `build_optimizer`; lists may stand for words, `targets` is another name of target_modules."""
        values = {name: value for name, value in arguments.items() if name in cls.ACCEPTED}
        if "targets" in values:
            values["target_modules"] = values.pop("targets")
        for name, separator in (("target_modules", " "), ("decay_exclude", ",")):
            if isinstance(values.get(name), list | tuple | set):
                values[name] = separator.join(values[name])
        return cls(**values)

    def role(self, name: str, found: str) -> str:
        """The role that was stated for a parameter of this name, or the one that was found."""
        return next((role for pattern, role in (self.roles or {}).items() if re.search(pattern, name)), found)

    def targets(self) -> list[str]:
        """The patterns of target_modules."""
        return (self.target_modules or "").split()

    def distinguishes(self) -> bool:
        """Whether parts of the model need groups of their own."""
        return self.decay_exclude is not None or any(ratio != 1.0 for ratio in self._ratios().values())

    def apply(self, optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
        """Set rates and decay of a new optimizer's groups. Raises ValueError when nothing has the role of a ratio."""
        if not self.distinguishes():
            return
        ratios, excluded = self._ratios(), {part for word in self._words() for part in EXCLUDABLE.get(word, ())}
        parts = [group.get("part") for group in optimizer.param_groups]
        if None in parts:
            raise ValueError("this method makes its own parameter groups: it takes no rates or decay by role")
        for role in ("embedding", "head"):
            if ratios[role] != 1.0 and role not in parts:
                why = "its output weight is tied to the embedding" if role == "head" else "none was found"
                raise ValueError(
                    f"{role}_lr_ratio={ratios[role]:g}: the model has no {role} of its own ({why}); leave it out"
                )
        for group, part in zip(optimizer.param_groups, parts, strict=True):
            for key in ("lr", "base_lr"):
                if key in group:
                    group[key] *= ratios.get(str(part), 1.0)
            if self.decay_exclude is not None:
                group["weight_decay"] = 0.0 if part in excluded else group["weight_decay"] or weight_decay

    def _ratios(self) -> dict[str, float]:
        vector = self.vector_lr_ratio
        return {
            "embedding": self.embedding_lr_ratio,
            "head": self.head_lr_ratio,
            **dict.fromkeys(("norm", "bias", "vector"), vector),
        }

    def _words(self) -> list[str]:
        return [word.strip() for word in (self.decay_exclude or "").split(",") if word.strip()]


_CHOSEN: ContextVar[RoutingOptions | None] = ContextVar("routing options", default=None)


@contextmanager
def using(options: RoutingOptions) -> Iterator[None]:
    """Route what is built inside with these options."""
    token = _CHOSEN.set(options)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen() -> RoutingOptions:
    """The options of the optimizer that is being built."""
    return _CHOSEN.get() or RoutingOptions()


def table(parameters: Sequence[NamedParameter], labels: Sequence[str]) -> str:
    """One line for each (role, shape, label): how many tensors and elements."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for parameter, label in zip(parameters, labels, strict=True):
        shape = "x".join(map(str, parameter.tensor.shape)) or "scalar"
        row = rows.setdefault((parameter.role, shape, label), [0, 0])
        row[0] += 1
        row[1] += parameter.tensor.numel()
    lines = [f"{'role':<17} {'shape':>14} {'tensors':>7} {'elements':>12}  group"]
    lines += [f"{r:<17} {s:>14} {n:>7} {e:>12,}  {label}" for (r, s, label), (n, e) in rows.items()]
    return "\n".join(lines)
