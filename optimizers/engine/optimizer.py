"""The torch.optim.Optimizer behind every method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, get_args

import torch
from torch import Tensor

from . import arguments, placement, state_io, synchronize
from .diagnostics import Observer
from .exchange import Alone, Exchange
from .in_backward import PerLayerUpdates, refuse_second_optimizer
from .options import EngineOptions
from .parameter import ManagedParameter, PendingUpdates, Shared
from .roles import role_of
from .rule import UpdateRule
from .settings import Settings

S = TypeVar("S", bound=Settings)


class EngineOptimizer(torch.optim.Optimizer, arguments.Configured, Generic[S]):
    """Base of the public classes: `class Mine(EngineOptimizer[MySettings])` says which rule a parameter gets.

    params: tensors, (name, tensor) pairs or groups, as in torch.optim. The keys of the settings class and the fields
    of `EngineOptions` are further arguments, and the former also keys of groups.

    State exists from construction: `state[p]` holds an int64 "step" (updates of that parameter) and the rule's
    tensors. The learning rate at construction is kept in each group as "base_lr". `warnings` counts what was borne.

    Raises ValueError for a hyperparameter out of range, or a group that is not one of this method's.
    """

    own_rules: ClassVar[tuple[type[UpdateRule], ...]] = ()
    """The rules that are the method, for a class that has another rule for the remaining parameters."""
    chosen_by: ClassVar[str] = ""
    """What makes a parameter get one of `own_rules`, for messages."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Settings):
                    cls.settings = argument
                    cls.__signature__ = arguments.signature(cls)  # type: ignore[attr-defined]

    def __init__(self, params: Iterable, *values: Any, **keywords: Any) -> None:
        defaults, options = arguments.sort(type(self), values, keywords)
        self.options = EngineOptions(**options)
        self._start()
        self.exchange: Exchange = Alone()
        self.trusts_gradients = False  # a loop that has looked at the norm sets it, and saves a wait for the device
        super().__init__(params, defaults)
        if not self._uses_method(self.managed):
            others = ", ".join(sorted({type(m.rule).__name__ for m in self.managed.values()}))
            raise ValueError(
                f"{type(self).__name__}: no parameter uses the method, all have {others}: it is for {self.chosen_by}. "
                "optimizers.build_optimizer finds them in a model"
            )
        if self.options.stagger_refresh and not any(m.rule.refreshes for m in self.managed.values()):
            raise ValueError(f"stagger_refresh: {type(self).__name__} refreshes nothing; leave it out")

    def _start(self) -> None:
        """What belongs to this object alone and is made again for a copy: no part of it is saved or copied."""
        self.shared = Shared(self.options, self._rule, lambda: self.state)
        self.managed: dict[Tensor, ManagedParameter] = {}
        self.pending: dict[Tensor, Tensor] = {}
        self.layers = PerLayerUpdates(self) if self.options.per_layer else None

    def rule_for(self, h: Any, param: Tensor) -> UpdateRule:
        """The rule of one parameter, from the settings of its group."""
        raise NotImplementedError

    def _rule(self, group: dict[str, Any], param: Tensor) -> UpdateRule:
        return self.rule_for(self.settings.from_group(group, hide=("weight_decay",)), param)

    @property
    def warnings(self) -> Counter[str]:
        """What was borne instead of raised, with how often."""
        return self.shared.warnings

    def takes_narrow_products(self, param: Tensor) -> bool:
        """Whether large products of a projected parameter may take bfloat16 operands: weights and state are bfloat16
        or less anyway."""
        return param.dtype == torch.bfloat16 and self.options.state_dtype != "float32"

    @property
    def per_layer(self) -> bool:
        """Whether updates happen inside the backward pass."""
        return self.layers is not None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; their state is allocated at once."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        arguments.check_group(type(self), group)
        group.setdefault("base_lr", float(group["lr"]))
        self._manage(group)
        defaults = {key: self.defaults[key] for key in self.settings.group_defaults()}
        asks = self._asks_for_method(group) and not self._asks_for_method({**group, **defaults})
        if asks and group["params"] and not self._uses_method(group["params"]):
            shapes = ", ".join(sorted({str(tuple(p.shape)) for p in group["params"]})[:3])
            raise ValueError(
                f"{type(self).__name__}: a group asks for the method, and no parameter of it can have it (shapes "
                f"{shapes}): it is for {self.chosen_by}"
            )

    def _asks_for_method(self, group: dict[str, Any]) -> bool:
        """Whether a matrix in this group would get the method's own rule."""
        return bool(self.own_rules) and isinstance(
            self._rule(group, torch.empty(64, 64, device="meta")), self.own_rules
        )

    def _uses_method(self, params: Iterable[Tensor]) -> bool:
        """Whether some of these parameters have the method's own rule."""
        return any(isinstance(self.managed[p].rule, self.own_rules or UpdateRule) for p in params)

    def _manage(self, group: dict[str, Any]) -> None:
        """Give every parameter of a group its rule, and its state where it has none yet."""
        names = group.get("param_names") or [None] * len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            index = len(self.managed)
            label = name or f"parameter {index}"
            refuse_second_optimizer(param, label)
            self.managed[param] = ManagedParameter(self.shared, param, group, index, label)
            if self.layers is not None:
                self.layers.watch(param)

    # -- the update ---------------------------------------------------------------------------------------------

    def begin_update(self, micro_batches: int = 1, max_norm: float = 0.0) -> None:
        """Open a per-layer update of this many backward passes; `step` closes it. Both numbers hold until the next
        call, so a loop in which they never change calls this once.

        max_norm: largest norm of each parameter's gradient (of its projection, where it is projected); 0: no clipping.
        Raises ValueError, naming the method, where it cannot accumulate over several backward passes, and before an
        update under way was closed.
        """
        if self.layers is None:
            raise ValueError("begin_update belongs to per_layer=True")
        self.layers.begin(micro_batches, max_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the loss of the closure, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.layers is not None:
            self.layers.close()
            return loss
        bad, gathered = self._non_finite(), synchronize.refresh_owned(self.managed.values())
        batch = PendingUpdates()
        for group in self.param_groups:
            for param in group["params"]:
                if param in bad:
                    self.managed[param].warn_of_gradient()
                elif param.grad is not None or param in self.pending:
                    self._update(self.managed[param], gathered, batch)
        batch.finish()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What torch's GradScaler asks for before its step."""
        if self.layers is not None:
            raise ValueError(
                "per_layer: updates are made inside the backward pass, from gradients that the GradScaler has scaled. "
                "Train in bfloat16, which needs no GradScaler, or leave out per_layer"
            )
        return False

    def _non_finite(self) -> set[Tensor]:
        """Parameters whose rule must be kept from their gradient; the same on every process, with one wait."""
        if self.trusts_gradients:
            return set()
        moving = [p for p, m in self.managed.items() if m.rule.moves_basis and p.grad is not None]
        return placement.non_finite(moving)

    def _update(
        self, managed: ManagedParameter, gathered: Mapping[Tensor, Tensor | None], batch: PendingUpdates
    ) -> None:
        """Update one parameter from its gradient, or from what `synchronize` made of it, perhaps not before the batch
        is finished; not at all before the rule's first refresh has succeeded. gathered: full gradients that are here.
        """
        managed.check_group()
        param, compressed = managed.param, self.pending.pop(managed.param, None)
        own = grad = param.grad
        if grad is not None:
            managed.refuse_sparse(grad)
            own = gathered[param] if param in gathered else managed.assemble(grad)
        if managed.refreshes.ready:
            managed.update(own, compressed, batch)

    def abandon_update(self) -> None:
        """Close a per-layer update without making it, as far as it has not been made."""
        assert self.layers is not None, "belongs to per_layer=True"
        with torch.no_grad():
            self.layers.abandon()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, those that `synchronize` took from `.grad` too."""
        self.pending.clear()
        super().zero_grad(set_to_none)

    def observe(self) -> Observer:
        """Collect figures of updates from now on; ask the observer for them."""
        self.shared.observer = Observer(self.managed.values())
        return self.shared.observer

    def enable_meta_updates(self) -> None:
        """Let an optimizer of meta tensors, which only allocates, update there too, for a prediction of memory."""
        for param, managed in self.managed.items():
            managed.start_on_meta()
            if self.layers is not None:
                self.layers.watch(param, meta=True)

    # -- what users ask -----------------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes of this process's state; on meta tensors, the prediction of the same."""
        tensors = (placement.local(t) for state in self.state.values() for t in state.values())
        return sum(t.numel() * t.element_size() for t in tensors)

    def effective_learning_rates(self) -> dict[str, float]:
        """The applied learning rate (lr x scale) of each kind of parameter, by route or rule name."""
        rates = {}
        for managed in self.managed.values():
            label = managed.group.get("route") or type(managed.rule).__name__
            rates[label] = float(managed.group["lr"]) * managed.rule.lr_factor
        return rates

    def routing_table(self) -> str:
        """One line for each (role, shape, rule, rate, decay): number of tensors, and state on this process in MiB."""
        rows: dict[tuple[str, ...], list[int]] = {}
        for param, managed in self.managed.items():
            group = managed.group
            role, shape = group.get("role") or role_of(managed.name), "x".join(map(str, param.shape))
            rates = f"{float(group['lr']):.3g}", f"{float(group['weight_decay']):.3g}"
            row = rows.setdefault((role, shape, type(managed.rule).__name__, *rates), [0, 0])
            row[0] += 1
            row[1] += sum(placement.local(t).nbytes for t in managed.state.values())
        head = f"{'role':<17} {'shape':>12} {'rule':<19} {'lr':>9} {'decay':>7} {'tensors':>7} {'state MiB':>9}"
        lines = [
            f"{role:<17} {shape:>12} {rule:<19} {lr:>9} {decay:>7} {count:>7} {size / 2**20:>9.2f}"
            for (role, shape, rule, lr, decay), (count, size) in rows.items()
        ]
        total = f"{'total':<17} {'':>12} {'':<19} {'':>9} {'':>7} {len(self.managed):>7}"
        return "\n".join([head, *lines, f"{total} {self.state_bytes() / 2**20:>9.2f}"])

    def state_dict(self) -> dict[str, Any]:
        """Groups and state, as torch's. Where parameters are sharded and an owner holds the state: a collective."""
        for managed in self.managed.values():
            _ = managed.state
        return state_io.complete(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; dtypes stay those it was saved with. Where both sides have parameter names, those are matched.

        Raises ValueError when parameters, shapes or formats differ, naming the first difference. A collective where
        parameters are sharded: then every process raises when one must.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        with torch.no_grad():
            state_io.load_state_dict(self, state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: groups, state and settings. What is hung onto this object, by a scheduler for instance,
        stays with it, as with torch's optimizers."""
        kind, own = dir(type(self)), ("shared", "managed", "pending", "layers")
        values = {k: v for k, v in self.__dict__.items() if k not in own and k not in kind}
        return {k: v for k, v in values.items() if not k.startswith(TORCHS_OWN)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it for its own classes
        self._start()
        for group in self.param_groups:
            self._manage(group)


TORCHS_OWN = ("_optimizer_", "_zero_grad_profile_name", "_warned_", "_opt_called", "_step_count")
"""Attributes that torch, its schedulers and other libraries hang onto an optimizer."""
