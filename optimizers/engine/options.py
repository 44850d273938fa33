"""Settings that belong to no method: every method runs in every one of them."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Declared, hyper

STATE_DTYPES = ("float32", "bfloat16", "int8")
ROUNDINGS = ("nearest", "stochastic")
EXECUTIONS = ("auto", "eager", "compiled")


@dataclass(frozen=True)
class EngineOptions(Declared):
    """How updates are stored and executed.

    Raises ValueError for a value outside the choices.
    """

    state_dtype: str = hyper(
        "float32",
        "storage of the optimizer state; the mathematics is float32 always. "
        "int8 uses blocks of 256 in bitsandbytes' dynamic format. Tensors under 4096 "
        "elements, and one value per row or block, stay float32",
        choices=STATE_DTYPES,
    )
    state_rounding: str = hyper(
        "stochastic",
        "how bfloat16 state is rounded; to nearest, as in published bfloat16 runs, a second moment cannot shrink "
        "where beta2 is above about 0.998",
        choices=ROUNDINGS,
    )
    weight_rounding: str = hyper(
        "stochastic",
        "how an updated bfloat16 weight is rounded: to nearest, small steps are swallowed; float32 is not rounded",
        choices=ROUNDINGS,
    )
    execution: str = hyper(
        "auto",
        "compiled: each rule is compiled once per shape with torch.compile (needs a C++ compiler on CPU), which takes "
        "from 10 seconds to minutes; auto: from update 501 on, where a compiler works; before that, eager",
        choices=EXECUTIONS,
    )
    per_layer: bool = hyper(
        False,
        "update each parameter inside the backward pass and free its gradient at once; clipping is then by the norm of "
        "each parameter's gradient",
    )
    stagger_refresh: bool = hyper(False, "spread the refreshes of bases over the gap instead of all in one update")
    rounding_seed: int = hyper(0, "seed of stochastic rounding and of random bases")
