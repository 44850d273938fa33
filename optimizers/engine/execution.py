"""One update of one tensor: load the state, apply the rule in float32, write weight and state; eager or compiled."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import precision
from .rule import Scalars, State, StateSpec, UpdateRule

SLICE = 1 << 22
"""Elements that an eager update works on at once where it can: 16 MB in each float32 temporary."""

TOGETHER, SMALL = 16, 1 << 20
"""One compiled call updates up to TOGETHER tensors of one signature that have at most SMALL elements: the way through
Python and the compiler's wrappers to a kernel costs half as much as the update of a 512 x 512 matrix."""

AUTO_AFTER = 500
"""Updates of a parameter before execution="auto" compiles. An estimate, not a measurement of this default: figures in
docs/decisions.md put compiling llama_60m at 20 to 160 seconds and its gain at 60 to 80 updates, more for small models.
A number of updates, because then a run that was resumed does what one that was not does."""


class CompilationError(Exception):
    """The compiler failed, before anything was changed."""


@dataclass(frozen=True)
class UpdateKernel:
    """The update of every tensor that shares a rule, formats and phase; hashable, so it is compiled once.

    specs: (name, spec, storage format) of each state tensor. first: whether this is the parameter's first update.
    first_row: number of the weight's first row in the whole tensor. state_part: which of several equal parts of whole
    rows the state is.
    """

    rule: UpdateRule
    specs: tuple[tuple[str, StateSpec, str], ...]
    first: bool
    decays: bool
    rounds_stochastically: bool
    first_row: int = 0
    state_part: int = 0

    @property
    def together(self) -> int:
        """How many small tensors to compile one call for: several only where a graph is short and often used."""
        rounds = self.rounds_stochastically or any(storage == "bfloat16" for _, _, storage in self.specs)
        return 1 if self.first or rounds or self.rule.compresses or self.rule.moves_basis else TOGETHER

    def __call__(
        self,
        weight: Tensor,
        grad: Tensor | None,
        compressed: Tensor | None,
        stored: State,
        s: Scalars,
        seed: precision.Seed,
    ) -> None:
        """Update weight and stored state in place. grad or compressed may be None where the rule allows it."""
        self.write(weight, self.direction(grad, compressed, stored, s, seed, weight), s, seed)

    def direction(
        self,
        grad: Tensor | None,
        compressed: Tensor | None,
        stored: State,
        s: Scalars,
        seed: precision.Seed,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The float32 direction in the parameter's shape; the stored state is brought up to date."""
        rule = self.rule
        state = {name: precision.load(name, spec, fmt, stored) for name, spec, fmt in self.specs}
        if rule.sees_weight and weight is not None:
            state["weight"] = precision.widened(weight)
        whole = None if grad is None else precision.widened(grad)
        # Under accumulation `compressed` is the sum over micro-batches and `grad` the last one's gradient.
        own = (
            rule.compress(whole, state) if whole is not None and (compressed is None or rule.follows_gradient) else None
        )
        given = own if compressed is None else precision.widened(compressed)
        direction = rule.direction(given, state, s, self.first)  # type: ignore[arg-type]
        if rule.follows_gradient and whole is not None and own is not None:
            rule.learn(whole, own, state, s, self.first)
        for index, (name, spec, fmt) in enumerate(self.specs):
            precision.store(name, spec, fmt, stored, state[name], seed, self.state_part, salt=index + 1)
        return direction

    def write(self, weight: Tensor, direction: Tensor, s: Scalars, seed: precision.Seed) -> None:
        """Weight decay, the step and rounding; in eager execution some rows after others, for small temporaries."""
        rows = weight.shape[0] if weight.ndim else 1
        first_row, together = self.first_row, rows
        if not torch.compiler.is_compiling():
            together = max(1, SLICE * rows // max(1, weight.numel()))
        if together >= rows:
            return self._write_rows(weight, direction, s, seed, first_row)
        for start in range(0, rows, together):
            some = slice(start, start + together)
            self._write_rows(weight[some], direction[some], s, seed, first_row + start)

    def _write_rows(self, weight: Tensor, direction: Tensor, s: Scalars, seed: precision.Seed, first_row: int) -> None:
        step = direction if self.rule.lr_inside else direction * s["lr"]
        value = precision.widened(weight)
        if self.decays and self.rule.decay == "before":
            value = value * s["keep"]
        moved = value - step
        rounds = self.rounds_stochastically and weight.dtype == torch.bfloat16
        rest = (value - moved) - step if rounds else None  # of a step too small for float32 beside the weight
        if self.decays and self.rule.decay == "after":
            moved = moved * s["keep"]
        weight.copy_(precision.round_stochastically(moved, seed, first_row, rest=rest) if rounds else moved)


_serial = itertools.count()


class Program:
    """A kernel compiled for one signature of shapes and dtypes; one graph for each number of calls made together.

    Nothing is ever recompiled, and no guard is checked: whatever a graph depends on is in the key of its program or of
    the graph, and tensors that the compiler would take for one (`_apart`) are kept apart. The numbers of the calls
    come in one tensor, a row a call: two calls with equal numbers today may differ tomorrow.
    A call is the arguments of `UpdateKernel`, as a tuple. together: most calls at once.
    """

    def __init__(self, kernel: UpdateKernel, signature: tuple) -> None:
        self.kernel = kernel
        shape, dtype, _, device = signature[0]
        self._options = _options(device.type == "cpu")
        self._device, self._dtype = device, torch.float64 if dtype == torch.float64 else torch.float32
        self.together = kernel.together if shape.numel() <= SMALL else 1
        self._compiled: dict[tuple, Callable[..., None]] = {}

    def __call__(self, *calls: tuple) -> None:
        """Make the updates of as many tensors."""
        names = tuple(calls[0][4])
        numbers = on_device(tuple(tuple(call[4].values()) for call in calls), self._dtype, self._device)
        seeds = on_device(tuple(precision.words(call[5]) for call in calls), torch.int32, self._device)
        key = len(calls), names
        if key in self._compiled:
            return self._compiled[key](_apart(calls), numbers, seeds)
        compiled = self._compile(names)
        try:
            compiled(_apart(calls), numbers, seeds)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise CompilationError(" ".join(str(error).split())[:300]) from error
        self._compiled[key] = compiled

    def _compile(self, names: tuple[str, ...]) -> Callable[..., None]:
        kernel = self.kernel

        def update(calls: list[tuple], numbers: Tensor, seeds: Tensor) -> None:
            for call, row, seed in zip(calls, numbers.unbind(), seeds.unbind(), strict=True):
                weight, grad, compressed, stored = call
                kernel(weight, grad, compressed, stored, dict(zip(names, row.unbind(), strict=True)), seed)

        # dynamo keys its cache by code object: without one of its own, every kernel would count as a recompilation.
        own = types.FunctionType(
            update.__code__.replace(co_name=f"update_{next(_serial)}"), globals(), None, None, update.__closure__
        )
        return torch.compile(own, fullgraph=True, dynamic=False, options=dict(self._options))  # it takes some out


def _apart(calls: tuple[tuple, ...]) -> list[tuple]:
    """The tensors of the calls. The compiler makes one input of tensors that are the same object, or share memory that
    is written to, when it sees them first: gradients that are one another, or a weight, are copied."""
    seen: set[int] = set()
    apart = []
    for weight, grad, compressed, stored, _, _ in calls:
        if grad is not None:
            shares = torch._C._is_alias_of(grad, weight)  # type: ignore[attr-defined]
            if shares or id(grad) in seen:
                grad = grad.clone()
            seen.add(id(grad))
        apart.append((weight, grad, compressed, stored))
    return apart


@functools.lru_cache(maxsize=4096)
def program(kernel: UpdateKernel, signature: tuple) -> Program:
    """The program of a kernel and a signature, the same one for all parameters that share them."""
    return Program(kernel, signature)


def _options(on_cpu: bool) -> dict[str, Any]:
    """Settings of the compiler: no guards, since the signature says what they would check.

    Without the threshold, the noise of stochastic rounding is a node of its own, in float32, which halves the width
    of the vectors that a loop over bfloat16 works on.
    """
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "size_asserts": False}
    options["realize_reads_threshold"] = 16
    options["score_fusion_memory_threshold"] = 4096  # tensors that share only a step's few numbers stay apart
    if on_cpu:
        try:
            from .row_loops import KeepRowLoops  # imports the compiler, which takes a second
        except ImportError:  # torch 2.11 has no such passes: some updates read a gradient twice
            return options
        options["_post_fusion_custom_pass"] = KeepRowLoops()
    return options


def signature(weight: Tensor, grad: Tensor | None, compressed: Tensor | None) -> tuple:
    """What a compiled kernel is specialised to."""
    parts = [(t.shape, t.dtype, t.stride(), t.device) if t is not None else None for t in (weight, grad, compressed)]
    return tuple(parts)


@functools.lru_cache(maxsize=64)
def on_device(rows: tuple[tuple, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a matrix on the device, in one transfer; parameters with the same numbers share it."""
    return torch.tensor(rows, dtype=dtype).to(device, non_blocking=True)
