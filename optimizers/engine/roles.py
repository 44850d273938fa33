"""Roles of a transformer's parameters, read from Hugging Face module names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

ROLE_PATTERNS: tuple[tuple[str, str], ...] = (
    ("bias", r"\.bias$"),
    ("fused", r"(qkv_proj|query_key_value|c_attn|Wqkv|gate_up_proj)\.weight$"),
    ("embedding", r"(embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$"),
    ("head", r"(lm_head|output|embed_out)\.weight$"),
    ("query", r"(q_proj|wq|query)\.weight$"),
    ("key", r"(k_proj|wk|key)\.weight$"),
    ("value", r"(v_proj|wv|value)\.weight$"),
    ("attention_output", r"(attn|attention)\.(o_proj|wo|out_proj|dense)\.weight$"),
    ("mlp", r"(gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2|c_fc)\.weight$"),
    ("norm", r"norm[^.]*\.weight$"),
)
"""First match wins."""


@dataclass(frozen=True)
class NamedParameter:
    """A trainable parameter with what routing may ask of it.

    role: one of ROLE_PATTERNS or "other". linear: the weight of an nn.Linear. block: that linear lies inside an
    attention or MLP module. tied: more than one module shares it.
    """

    name: str
    tensor: Tensor
    role: str
    linear: bool
    block: bool
    tied: bool


_WRAPPERS = re.compile(r"^(module\.)+|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_name(name: str) -> str:
    """The name without what DistributedDataParallel, torch.compile, FSDP and checkpoint wrappers put into it."""
    return _WRAPPERS.sub("", _WRAPPERS.sub("", name))


def plain_names(names: Iterable[str]) -> list[str]:
    """Names without wrappers, as long as they stay distinct."""
    given = list(names)
    plain = [plain_name(name) for name in given]
    return plain if len(set(plain)) == len(plain) else given


def role_of(name: str) -> str:
    """The role a parameter's name states, or "other"."""
    return next((role for role, pattern in ROLE_PATTERNS if re.search(pattern, name)), "other")


def describe(model: nn.Module) -> list[NamedParameter]:
    """The trainable parameters of a model, each once, in the order of `named_parameters`."""
    owners: dict[Tensor, list[tuple[str, bool]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=True):
        for name, tensor in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            owners.setdefault(tensor, []).append((full, isinstance(module, nn.Linear) and name == "weight"))
    described = []
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        names = owners[tensor]
        linear = any(is_linear for _, is_linear in names)
        block = linear and any(key in full for full, _ in names for key in ("attn", "attention", "mlp"))
        described.append(NamedParameter(name, tensor, role_of(name), linear, block, len(names) > 1))
    return described
