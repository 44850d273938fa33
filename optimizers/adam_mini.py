"""Adam-mini: one second moment per block (Zhang et al., arXiv 2406.16793).

Blocks follow the Hessian's structure and a parameter's role: embedding and output head one per token (row), query and
key one per head, value, attention output and MLP one per output neuron (row), norms one per tensor, biases one per
element. v_block = E[mean of G^2 over the block]_beta2, m = E[G]_beta1,
W <- W - lr/c1 * m / (sqrt(v)/sqrt(c2) + eps) (algorithm 2), decoupled decay before, none on norms and biases.

Deviations from the released code: roles come from Hugging Face names or `roles=`; a matrix whose role is unknown,
fused or tied is refused by name instead of being guessed; heads of the key are counted by n_kv_heads and heads have
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
from .engine.registry import Method, register
from .engine.roles import describe, role_of
from .engine.rule import Decay, Scalars, State, StateSpec, UpdateRule
from .engine.settings import hyper
from .primitives import moments
from .primitives.steps import AdamSettings

ROW_ROLES = ("embedding", "head", "value", "attention_output", "mlp")
HEAD_ROLES = ("query", "key")
UNDECAYED_ROLES = ("norm", "bias")
ROLES = (*ROW_ROLES, *HEAD_ROLES, *UNDECAYED_ROLES)


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


class AdamMini(EngineOptimizer[AdamMiniSettings]):
    """Adam-mini for named parameters of a transformer.

    named_parameters: (name, tensor) pairs, or groups of them. dim: hidden size. n_heads, n_kv_heads: attention heads
    (n_kv_heads defaults to n_heads). roles: {regular expression of a name: role} for models whose names differ from
    Hugging Face's; roles are embedding, head, query, key, value, attention_output, mlp, norm, bias.
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
        **keywords: Any,
    ) -> None:
        if dim is None or n_heads is None:
            raise ValueError("AdamMini needs dim (hidden size) and n_heads")
        self._heads = {"query": n_heads, "key": n_kv_heads or n_heads}
        self._roles = dict(roles or {})
        unknown = sorted(set(self._roles.values()) - set(ROLES))
        if unknown:
            raise ValueError(f"roles={unknown}: choose among {', '.join(ROLES)}")
        super().__init__(self._role_groups(named_parameters), *values, **keywords)

    def _role_groups(self, named: Iterable) -> list[dict[str, Any]]:
        entries = list(named)
        if not entries:
            raise ValueError("AdamMini got no parameters")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        return [split for group in groups for split in self._split(group)]

    def _split(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """One group a role: weight decay and blocks depend on it."""
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
        split = [{**rest, "params": found, "role": role, "route": role} for role, found in by_role.items()]
        return [{**g, "weight_decay": 0.0} if g["role"] in UNDECAYED_ROLES else g for g in split]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "role" in param_group:
            super().add_param_group(param_group)
            return
        for group in self._split(param_group):
            super().add_param_group(group)

    def role(self, name: str, param: Tensor) -> str:
        """The role of a parameter; ValueError when it is not known."""
        stated = next((role for pattern, role in self._roles.items() if re.search(pattern, name)), None)
        role = stated or role_of(name)
        if role == "other" and param.ndim == 1 and param.shape[0] == 1:
            return "bias"
        if role not in ROLES:
            what = "a fused matrix" if role == "fused" else "a parameter of unknown role"
            raise ValueError(
                f"Adam-mini: {name} {tuple(param.shape)} is {what}; state it with roles={{'pattern': role}}"
            )
        if param.ndim != (1 if role in UNDECAYED_ROLES else 2):
            raise ValueError(f"Adam-mini: {name} has shape {tuple(param.shape)}, which does not fit its role {role}")
        return role

    def rule_for(self, h: AdamMiniSettings, param: Tensor) -> UpdateRule:
        return BlockStep(h, self.block(h, param))

    def block(self, h: AdamMiniSettings, param: Tensor) -> int:
        """Consecutive elements that share a second moment."""
        role = h.role
        assert role is not None
        if role == "bias":
            return 1
        if role == "norm" or (role == "value" and h.one_block_value):
            return param.numel()
        if role in ROW_ROLES:
            return param.shape[1]
        heads = self._heads[role]
        if param.shape[0] % heads:
            raise ValueError(f"Adam-mini: a {role} matrix of {param.shape[0]} rows does not divide into {heads} heads")
        return param.numel() // heads


def _build(model: nn.Module, lr: float, h: AdamMiniSettings, options: dict[str, Any]) -> AdamMini:
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if config is None or heads is None:
        raise ValueError("Adam-mini needs a model with config.hidden_size and config.num_attention_heads")
    parameters = describe(model)
    tied = next((p for p in parameters if p.tied), None)
    if tied is not None:
        raise ValueError(f"Adam-mini: {tied.name} is tied; embedding and head need separate weights")
    return AdamMini(
        [(p.name, p.tensor) for p in parameters],
        lr=lr,
        dim=config.hidden_size,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None),
        **h.by_key(),
        **options,
    )


register(
    Method(
        "adam_mini",
        "Adam-mini: one second moment per head, output neuron or token",
        settings=AdamMiniSettings,
        build=_build,
        aliases=("adammini", "adam-mini"),
    )
)
