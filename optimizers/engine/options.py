"""Settings that belong to no method: every method runs in every one of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

STATE_DTYPES = ("float32", "bfloat16", "int8")
ROUNDINGS = ("nearest", "stochastic")
EXECUTIONS = ("eager", "compiled")


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that becomes a command-line flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class EngineOptions:
    """How updates are stored and executed.

    Raises ValueError for a value outside the choices.
    """

    state_dtype: str = option(
        "float32",
        "storage of the optimizer state; the mathematics is float32 always. bfloat16 is rounded stochastically, "
        "int8 uses blocks of 256 in bitsandbytes' dynamic format. Tensors under 4096 "
        "elements, or under a sixteenth of their weight, stay float32",
        STATE_DTYPES,
    )
    weight_rounding: str = option(
        "stochastic",
        "how an updated bfloat16 weight is rounded: to nearest, small steps are swallowed; float32 is not rounded",
        ROUNDINGS,
    )
    execution: str = option(
        "eager",
        "compiled: each rule is compiled once a shape with torch.compile (needs a C++ compiler on CPU)",
        EXECUTIONS,
    )
    per_layer: bool = option(
        False,
        "update each parameter inside the backward pass and free its gradient at once; clipping is then by the norm of "
        "each parameter's gradient",
    )
    stagger_refresh: bool = option(False, "spread the refreshes of bases over the gap instead of all in one update")
    rounding_seed: int = option(0, "seed of stochastic rounding and of random bases")

    def __post_init__(self) -> None:
        for f in fields(self):
            choices = f.metadata["choices"]
            value = getattr(self, f.name)
            if choices and value not in choices:
                raise ValueError(f"{f.name}={value!r}: choose one of {', '.join(choices)}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options."""
        return tuple(f.name for f in fields(cls))
