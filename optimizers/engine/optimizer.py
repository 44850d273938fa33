"""The torch.optim.Optimizer behind every method: state, execution and saving, written once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import precision, state_io
from .execution import ScalarCache, UpdateKernel, compiled, signature
from .options import EngineOptions
from .rule import State, StateSpec, UpdateRule


@dataclass
class Record:
    """What the engine knows of one parameter beside its state."""

    index: int
    name: str
    group: dict[str, Any]
    rule: UpdateRule
    specs: tuple[tuple[str, StateSpec, str], ...]
    signature: tuple = ()
    settled: bool | None = None
    kernels: dict[tuple, Any] = field(default_factory=dict)


class EngineOptimizer(torch.optim.Optimizer):
    """Base of the public classes. A subclass names its hyperparameters and says which rule a parameter gets.

    params: tensors, (name, tensor) pairs or groups, as in torch.optim. defaults: hyperparameters of groups that do
    not set them. options: fields of `EngineOptions` by keyword.

    State exists from construction: `state[p]` holds an int64 "step" (updates of that parameter) and the rule's
    tensors. The learning rate at construction is kept in each group as "base_lr".

    Raises ValueError for a hyperparameter out of range, or a group that is not one of this method's.
    """

    def __init__(self, params: Iterable, defaults: dict[str, Any], options: dict[str, Any]) -> None:
        unknown = sorted(set(options) - set(EngineOptions.names()))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(unknown)}")
        self.options = EngineOptions(**options)
        self.warnings: Counter[str] = Counter()
        self.records: dict[Tensor, Record] = {}
        self._scalars = ScalarCache()
        super().__init__(params, defaults)

    # -- what a method says -------------------------------------------------------------------------------------

    def rule_for(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        """The rule of one parameter of a group."""
        raise NotImplementedError

    def decay_of(self, group: dict[str, Any]) -> float:
        """The decoupled weight decay of a group."""
        return group["weight_decay"]

    def scale_of(self, rule: UpdateRule) -> float:
        """What the applied step is multiplied with beside the learning rate, for the log."""
        return getattr(rule, "scale", 1.0)

    # -- construction -------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; their state is allocated at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_group(group)
        group.setdefault("base_lr", float(group["lr"]))
        names = group.get("param_names") or [None] * len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            index = len(self.records)
            self._allocate(param, group, index, name or f"parameter {index}")

    def _allocate(self, param: Tensor, group: dict[str, Any], index: int, name: str) -> None:
        rule = self.rule_for(group, param)
        specs = self._specs(rule, param)
        self.records[param] = Record(index, name, group, rule, specs, _group_signature(group))
        state = self.state[param]
        state["step"] = torch.zeros((), dtype=torch.int64)
        for key, spec, storage in specs:
            for stored, (shape, dtype) in precision.layout(key, spec, storage).items():
                state[stored] = torch.zeros(shape, dtype=dtype, device=param.device)

    def _specs(self, rule: UpdateRule, param: Tensor) -> tuple[tuple[str, StateSpec, str], ...]:
        specs = rule.state(param.shape)
        formats = (precision.storage_format(s, self.options.state_dtype, param.dtype) for s in specs.values())
        return tuple((name, spec, fmt) for (name, spec), fmt in zip(specs.items(), formats, strict=True))

    # -- the update ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the loss of the closure, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update_parameter(param, param.grad)
        return loss

    def update_parameter(self, param: Tensor, grad: Tensor | None, compressed: Tensor | None = None) -> bool:
        """Update one parameter from its gradient, or from a gradient that `compress_gradient` has compressed.

        Returns False when the update was put off because the rule's first refresh has not succeeded yet.
        """
        record, state = self._record(param), self.state[param]
        if grad is not None and grad.is_sparse:
            raise ValueError(f"{record.name}: sparse gradients are not supported; set sparse=False in the embedding")
        if compressed is None and not self.refresh_if_due(param, grad):
            return False
        step = int(state["step"]) + 1
        values = self._scalar_values(record, step)
        kernel = self._kernel(record, step == 1, param, grad, compressed)
        seed: Any = rounding_seed(self.options.rounding_seed, record.index, step)
        stored = {k: v for k, v in state.items() if k != "step"}
        if self.options.execution == "compiled" and record.rule.compilable:
            scalars = self._scalars.tensors(values, param.device)
            kernel(param, grad, compressed, stored, scalars, torch.tensor(seed, dtype=torch.int32, device=param.device))
        else:
            kernel(param, grad, compressed, stored, values, seed)
        state["step"] += 1
        return True

    def refresh_if_due(self, param: Tensor, grad: Tensor) -> bool:
        """Refresh the slow part of the state when its turn has come; False while it has never succeeded."""
        record, state = self._record(param), self.state[param]
        rule = record.rule
        if not rule.refreshes:
            return True
        step = int(state["step"]) + 1
        if record.settled is None:
            record.settled = rule.settled(self._load(record, state))
        offset = record.index if self.options.stagger_refresh else 0
        if not record.settled or rule.due(step, offset):
            record.settled = self._refresh(record, state, grad, step) or record.settled
        return record.settled

    def _refresh(self, record: Record, state: State, grad: Tensor, step: int) -> bool:
        whole = grad.float()
        if not torch.isfinite(whole).all():
            self.warnings[f"{record.name}: non-finite gradient, the old basis stays"] += 1
            return False
        rng = torch.Generator().manual_seed(rounding_seed(self.options.rounding_seed + 1, record.index, step))
        values = self._load(record, state)
        try:
            changed = record.rule.refresh(whole, values, rng)
        except torch.linalg.LinAlgError:
            self.warnings[f"{record.name}: the SVD failed, the old basis stays"] += 1
            return False
        if changed:
            self._store(record, state, values, rounding_seed(self.options.rounding_seed + 2, record.index, step))
        return changed

    def _record(self, param: Tensor) -> Record:
        """The record, with its rule made again when somebody changed a hyperparameter of the group."""
        record = self.records[param]
        now = _group_signature(record.group)
        if now != record.signature:
            record.rule, record.signature = self.rule_for(record.group, param), now
            record.kernels.clear()
            if self._specs(record.rule, param) != record.specs:
                raise ValueError(f"{record.name}: a hyperparameter that shapes the state was changed after construction")
        return record

    def _scalar_values(self, record: Record, step: int) -> dict[str, float]:
        group = record.group
        lr = float(group["lr"])
        ratio = lr / group["base_lr"] if group["base_lr"] else 1.0
        decay = self.decay_of(group)
        return {**record.rule.scalars(step, ratio), "lr": lr, "keep": 1.0 - lr * decay}

    def _kernel(self, record: Record, first: bool, *tensors: Tensor | None) -> Callable[..., None]:
        decays = self.decay_of(record.group) != 0.0
        key = (first, decays, *(t is None for t in tensors))
        if key not in record.kernels:
            stochastic = self.options.weight_rounding == "stochastic"
            kernel = UpdateKernel(record.rule, record.specs, first, decays, stochastic)
            if self.options.execution == "compiled" and record.rule.compilable:
                record.kernels[key] = compiled(kernel, signature(*tensors))
            else:
                record.kernels[key] = kernel
        return record.kernels[key]

    @staticmethod
    def _load(record: Record, state: State) -> State:
        return {name: precision.load(name, spec, fmt, state) for name, spec, fmt in record.specs}

    @staticmethod
    def _store(record: Record, state: State, values: State, seed: int) -> None:
        for index, (name, spec, fmt) in enumerate(record.specs):
            precision.store(name, spec, fmt, state, values[name], seed + index)

    # -- what users ask -----------------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes of all state tensors; on meta tensors, the prediction of the same."""
        return sum(t.numel() * t.element_size() for state in self.state.values() for t in state.values())

    def effective_learning_rates(self) -> dict[str, float]:
        """The applied learning rate (lr x scale) of each kind of parameter, by route or rule name."""
        rates = {}
        for record in self.records.values():
            label = record.group.get("route") or type(record.rule).__name__
            rates[label] = float(record.group["lr"]) * self.scale_of(record.rule)
        return rates

    def routing_table(self) -> str:
        """One line for each (route, shape, rule): how many tensors and their state in MB."""
        rows: dict[tuple[str, str, str], list[int]] = {}
        for param, record in self.records.items():
            size = sum(t.numel() * t.element_size() for t in self.state[param].values())
            shape = "x".join(map(str, param.shape))
            row = rows.setdefault((record.group.get("route") or "-", shape, type(record.rule).__name__), [0, 0])
            row[0] += 1
            row[1] += size
        lines = [f"{'route':<26} {'shape':>12} {'rule':<19} {'tensors':>7} {'state MB':>9}"]
        for (route, shape, rule), (count, size) in rows.items():
            lines.append(f"{route:<26} {shape:>12} {rule:<19} {count:>7} {size / 1e6:>9.2f}")
        lines.append(f"{'total':<26} {'':>12} {'':<19} {len(self.records):>7} {self.state_bytes() / 1e6:>9.2f}")
        return "\n".join(lines)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; dtypes stay those it was saved with.

        Raises ValueError when parameters, shapes or formats differ, naming the first difference.
        """
        state_io.load_state_dict(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a hyperparameter out of range."""
    for name in ("lr", "weight_decay", "eps", "rank", "update_proj_gap"):
        value = group.get(name)
        values = value if isinstance(value, tuple | list) else (value,)
        if any(v is not None and not float(v) >= 0.0 for v in values):
            raise ValueError(f"{name}={value!r}: it must not be negative")
    for name in ("betas", "beta1", "beta2", "momentum", "rho"):
        value = group.get(name)
        for beta in value if isinstance(value, tuple | list) else (value,):
            if beta is not None and not 0.0 <= beta < 1.0:
                raise ValueError(f"{name}={value!r}: it must be at least 0 and below 1")
    for name in ("rank", "update_proj_gap"):
        if group.get(name) is not None and group[name] < 1:
            raise ValueError(f"{name}={group[name]!r}: it must be at least 1")


def rounding_seed(seed: int, index: int, step: int) -> int:
    """A 31-bit seed for one parameter and update."""
    return ((seed + 1) * 0x9E3779B1 ^ (index + 1) * 0x85EBCA6B ^ (step + 1) * 0xC2B2AE35) & 0x3FFFFFFF


def _group_signature(group: dict[str, Any]) -> tuple:
    skipped = ("params", "param_names", "lr", "base_lr", "initial_lr", "route", "weight_decay")
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in group.items() if k not in skipped)
