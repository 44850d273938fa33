"""Adam-mini: one second moment per block (Zhang et al., arXiv 2406.16793).

Blocks follow the Hessian's structure and a parameter's role: embedding and output head one per token (row), query and
key one per head, value, attention output and MLP one per output neuron (row), norms one per tensor, biases one per
element. v_block = E[mean of G^2 over the block]_beta2, m = E[G]_beta1,
W <- W - lr/c1 * m / (sqrt(v)/sqrt(c2) + eps) (algorithm 2), decoupled decay before, none on norms and biases.

Matrices that hold query, key and value in one get the blocks of the three. Layers stored as (inputs, outputs) have
their output neurons in the columns. LoRA's matrices have one block per output neuron. A weight that embedding and head
share has one per token. A convolution is one block, as in the released code.

Deviations from the released code: roles come from the types of modules, from names or from `roles=`; a matrix whose
role is unknown is refused by name instead of being guessed; heads of the key are counted by n_kv_heads and heads have
the size that the matrix's rows say; mathematics in float32. For runs under 20,000 updates the authors use one block
for the whole value matrix: `one_block_value`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .engine.optimizer import EngineOptimizer
from .engine.parts import chosen
from .engine.registry import Method, register
from .engine.roles import NamedParameter, describe, plain_name, role_of
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import hyper
from .primitives import moments
from .primitives.steps import AdamSettings

ROW_ROLES = ("embedding", "head", "value", "attention_output", "mlp", "lora", "experts", "router")
HEAD_ROLES = ("query", "key")
FUSED_ROLES = ("fused", "fused_by_head")
WHOLE_ROLES = ("tensor", "convolution")
UNDECAYED_ROLES = ("norm", "bias")
ROLES = (*ROW_ROLES, *HEAD_ROLES, *FUSED_ROLES, *WHOLE_ROLES, *UNDECAYED_ROLES)


@dataclass(frozen=True)
class AdamMiniSettings(AdamSettings):
    """What Adam-mini takes."""

    weight_decay: float = hyper(
        0.0, "decoupled weight decay, applied before the step; none on norms and biases", at_least=0.0
    )
    one_block_value: bool = hyper(
        False, "one block for the whole value matrix (the authors: runs under 20,000 updates)"
    )
    role: str | None = hyper(None, "the role of the group's parameters, found by the class", flag=False, choices=ROLES)
    heads: int | None = hyper(None, "query heads, where the model says so", flag=False, at_least=1)
    key_heads: int | None = hyper(None, "key heads, where the model says so", flag=False, at_least=1)
    transposed: bool = hyper(False, "whether matrices are stored as (inputs, outputs)", flag=False)


@dataclass(frozen=True)
class BlockStep(UpdateRule):
    """Adam with one second moment for each block of `block` consecutive elements (arXiv 2406.16793, algorithm 2)."""

    decay: ClassVar[Decay] = "before"
    h: AdamMiniSettings
    block: int

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.h.beta1 else {}
        return {**specs, "exp_avg_sq": StateSpec((shape.numel() // self.block, 1), "second_moment")}

    def scalars(self, step: int, lr_ratio: float) -> dict[str, float]:
        return moments.adam_scalars(step, self.h.beta1, self.h.beta2)

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        blocks = grad.reshape(-1, self.block)
        v = moments.second_moment(state, (blocks * blocks).mean(dim=1, keepdim=True), self.h.beta2)
        m = moments.first_moment(state, grad, self.h.beta1)
        return moments.adam_direction(m, self._spread(v, grad), s, self.h.eps, eps_inside=True)

    def _spread(self, v: Tensor, grad: Tensor) -> Tensor:
        """The blocks' values in a shape that broadcasts with the gradient: one value a row where blocks are rows."""
        rows, rest = divmod(self.block, grad.shape[-1])
        return v.reshape(grad.shape) if rest else v.expand(-1, rows).reshape(*grad.shape[:-1], 1)

    def row_block(self, shape: torch.Size) -> int | None:
        return max(1, self.block // shape[1:].numel())


Sections = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SectionStep(BlockStep):
    """The same with blocks of several sizes: `repeats` times these sections of (blocks, output neurons in each).

    transposed: the output neurons are the columns.
    """

    sections: Sections
    repeats: int = 1
    transposed: bool = False

    def state(self, shape: torch.Size) -> dict[str, StateSpec]:
        specs = {"exp_avg": StateSpec(tuple(shape), "moment")} if self.h.beta1 else {}
        blocks = self.repeats * sum(count for count, _ in self.sections)
        return {**specs, "exp_avg_sq": StateSpec((blocks, 1), "second_moment")}

    def direction(self, grad: Tensor, state: State, s: Scalars, first: bool) -> Tensor:
        squares = (grad * grad).mean(dim=0 if self.transposed else 1).reshape(self.repeats, -1)
        rows = squares.split([count * length for count, length in self.sections], dim=1)
        means = [
            part.reshape(self.repeats, count, length).mean(dim=2)
            for part, (count, length) in zip(rows, self.sections, strict=True)
        ]
        v = moments.second_moment(state, torch.cat(means, dim=1).reshape(-1, 1), self.h.beta2)
        values = v.reshape(self.repeats, -1).split([count for count, _ in self.sections], dim=1)
        spread = torch.cat(
            [
                value.unsqueeze(2).expand(-1, -1, length).reshape(self.repeats, -1)
                for value, (_, length) in zip(values, self.sections, strict=True)
            ],
            dim=1,
        ).reshape((1, -1) if self.transposed else (-1, 1))
        m = moments.first_moment(state, grad, self.h.beta1)
        return moments.adam_direction(m, spread, s, self.h.eps, eps_inside=True)

    def row_block(self, shape: torch.Size) -> int | None:
        return None


class AdamMini(EngineOptimizer[AdamMiniSettings]):
    """Adam-mini for named parameters.

    named_parameters: (name, tensor) pairs, or groups of them. dim: hidden size, which the released class needs; here
    rows say it. n_heads, n_kv_heads: attention heads (n_kv_heads defaults to n_heads). roles: {regular
    expression of a name: role} for models whose names differ from Hugging Face's; roles are embedding, head, query,
    key, value, attention_output, mlp, fused (query, key and value one below the other), fused_by_head (the three of
    each head together), lora, experts, router, norm, bias, and tensor (one block). otherwise: the role of what no name
    tells, instead of an error.
    Raises ValueError for a parameter whose role is not known, or whose rows do not divide into its heads.
    """

    def __init__(
        self,
        named_parameters: Iterable,
        *values: Any,
        dim: int | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        roles: Mapping[str, str] | None = None,
        otherwise: str | None = None,
        **keywords: Any,
    ) -> None:
        if dim is not None and n_heads and dim % n_heads:
            raise ValueError(f"dim={dim} does not divide into n_heads={n_heads}")
        self._heads = (n_heads, n_kv_heads or n_heads)
        self._roles, self._otherwise = dict(roles or {}), otherwise
        check_roles({*self._roles.values(), otherwise or "tensor"})
        super().__init__(self._role_groups(named_parameters), *values, **keywords)

    def _role_groups(self, named: Iterable) -> list[dict[str, Any]]:
        entries = list(named)
        if not entries:
            raise ValueError("AdamMini got no parameters")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        return [split for group in groups for split in self._split(group)]

    def _split(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """One group a role: weight decay and blocks depend on it."""
        if "role" in group:
            return [group]
        pairs = group["params"]
        if "param_names" in group:
            pairs = list(zip(group["param_names"], pairs, strict=True))
        by_role: dict[str, list] = {}
        for pair in pairs:
            if not isinstance(pair, tuple):
                raise ValueError("AdamMini needs (name, tensor) pairs, such as model.named_parameters()")
            if pair[1].requires_grad:
                by_role.setdefault(self.role(*pair), []).append(pair)
        rest = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        return [role_group(found, role, rest) for role, found in by_role.items()]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for group in self._split(param_group):
            super().add_param_group(group)

    def role(self, name: str, param: Tensor) -> str:
        """The role of a parameter; ValueError when it is not known."""
        stated = next((role for pattern, role in self._roles.items() if re.search(pattern, name)), None)
        return fitting_role(name, param, stated or role_of(name), self._otherwise)

    def rule_for(self, h: AdamMiniSettings, param: Tensor) -> UpdateRule:
        role, heads = h.role, (h.heads or self._heads[0], h.key_heads or self._heads[1])
        if role in FUSED_ROLES or (h.transposed and role in (*ROW_ROLES, *HEAD_ROLES)):
            return SectionStep(h, 0, *sections(str(role), param, heads, h.transposed), transposed=h.transposed)
        return BlockStep(h, block(h, param, heads))


def check_roles(stated: Iterable[str]) -> None:
    """Raise ValueError for a role that does not exist."""
    if unknown := sorted(set(stated) - set(ROLES)):
        raise ValueError(f"roles={unknown}: choose among {', '.join(ROLES)}")


def role_group(pairs: list[tuple[str, Tensor]], role: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group of one role; norms and biases do not decay."""
    decay = {"weight_decay": 0.0} if role in UNDECAYED_ROLES else {}
    return {**keys, "params": pairs, "role": role, "route": role, **decay}


def fitting_role(name: str, param: Tensor, role: str, otherwise: str | None = None) -> str:
    """The role, where the shape allows it. Raises ValueError for a role that is not known or does not fit."""
    if param.ndim <= 1 and role not in UNDECAYED_ROLES:
        role = "bias" if param.numel() <= 1 else role if role != "other" else otherwise or role
    if role not in ROLES and otherwise is not None:
        role = otherwise
    if role not in ROLES:
        raise ValueError(
            f"Adam-mini: {name} {tuple(param.shape)} is a parameter of unknown role; state it with "
            "roles={'pattern': role}"
        )
    fits = param.ndim <= 1 if role in UNDECAYED_ROLES else param.ndim >= 2 or role in WHOLE_ROLES
    if not fits or (role in (*HEAD_ROLES, *FUSED_ROLES) and param.ndim != 2):
        raise ValueError(f"Adam-mini: {name} has shape {tuple(param.shape)}, which does not fit its role {role}")
    return role


def block(h: AdamMiniSettings, param: Tensor, heads: tuple[int | None, int | None]) -> int:
    """Consecutive elements that share a second moment."""
    role = h.role
    if role == "bias" or param.numel() == 0:
        return 1
    if role == "norm" or role in WHOLE_ROLES or (role == "value" and h.one_block_value):
        return param.numel()
    if role == "experts":
        return param.shape[-1]
    if role in ROW_ROLES:
        return param.shape[1:].numel()
    return param.numel() // _count(str(role), param.shape[0], heads[role == "key"])


def sections(role: str, param: Tensor, heads: tuple[int | None, int | None], transposed: bool) -> tuple[Sections, int]:
    """The blocks of a matrix in terms of its output neurons, and how often they repeat."""
    neurons = param.shape[1 if transposed else 0]
    if role in ROW_ROLES:
        return ((neurons, 1),), 1
    if role in HEAD_ROLES:
        count = _count(role, neurons, heads[role == "key"])
        return ((count, neurons // count),), 1
    query, key = heads[0] or 0, heads[1] or heads[0] or 0
    if role == "fused_by_head":
        size = neurons // _count(role, neurons, 3 * query)
        return ((1, size), (1, size), (size, 1)), query
    size = neurons // _count(role, neurons, query + 2 * key)
    return ((query, size), (key, size), (key * size, 1)), 1


def _count(role: str, neurons: int, heads: int | None) -> int:
    """The number of heads. Raises ValueError where it is not known, or does not divide the output neurons."""
    if not heads:
        raise ValueError(f"Adam-mini: a {role} matrix has one block per head: say n_heads (and n_kv_heads)")
    if neurons % heads:
        raise ValueError(f"Adam-mini: a {role} matrix of {neurons} rows does not divide into {heads} heads")
    return heads


def _build(model: nn.Module, lr: float, h: AdamMiniSettings, options: dict[str, Any]) -> AdamMini:
    check_roles((chosen().roles or {}).values())
    groups: dict[tuple[Any, ...], list[NamedParameter]] = {}
    for p in describe(model):
        role = chosen().role(plain_name(p.name), p.role)
        if role == "other" and (p.linear or p.tensor.ndim < 2):
            role = "mlp" if p.linear else "tensor"
        role = fitting_role(p.name, p.tensor, role)
        by_head = role in (*HEAD_ROLES, *FUSED_ROLES)
        key = (role, p.transposed, p.heads if by_head else None, p.key_heads if by_head else None, p.part)
        groups.setdefault(key, []).append(p)
    made = [
        role_group(
            [(p.name, p.tensor) for p in found],
            role,
            {"transposed": transposed, "heads": heads, "key_heads": key_heads, "part": part},
        )
        for (role, transposed, heads, key_heads, part), found in groups.items()
    ]
    if not made:
        raise ValueError("the model has no trainable parameters")
    return AdamMini(made, lr=lr, roles=chosen().roles, **{**h.by_key(), **options})


register(
    Method(
        "adam_mini",
        "Adam-mini: one second moment per head, output neuron or token",
        settings=AdamMiniSettings,
        build=_build,
        aliases=("adammini", "adam-mini"),
    )
)
