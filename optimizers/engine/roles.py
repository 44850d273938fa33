"""Roles of a model's parameters: found from the types and shapes of modules first, from names second.

What wraps a model (DistributedDataParallel, torch.compile, FSDP, activation checkpointing, PEFT) changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

ROLE_PATTERNS: tuple[tuple[str, str], ...] = (
    ("bias", r"(^|[._])bias$"),
    ("lora", r"\blora_"),
    ("fused_by_head", r"query_key_value\.weight$"),
    ("fused", r"(qkv_proj|c_attn|Wqkv|\bqkv)\.weight$|in_proj_weight$"),
    (
        "embedding",
        r"(embed_tokens|embed_in|wte|wpe|\w+_embeddings|tok_embeddings|position_embeddings|cls_token)(\.weight)?$",
    ),
    ("head", r"(lm_head|output|embed_out)\.weight$"),
    ("query", r"(q_proj|wq|query)\.weight$"),
    ("key", r"(k_proj|wk|key)\.weight$"),
    ("value", r"(v_proj|wv|value)\.weight$"),
    ("attention_output", r"(attn|attention)(\.output)?\.(o_proj|wo|out_proj|dense|c_proj|proj)\.weight$"),
    ("mlp", r"(gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2|c_fc)\.weight$"),
    ("mlp", r"(mlp\.c_proj|intermediate\.dense|output\.dense|dense_h_to_4h|dense_4h_to_h)\.weight$"),
    ("norm", r"(norm[^.]*|\bln_\w+)\.weight$"),
)
"""First match wins; the case of letters does not matter. fused: query, key and value, each of them together;
fused_by_head: the three of one head after those of another."""

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
_IN_A_LAYER = re.compile(r"attn|attention|mlp|ffn|feed_forward", re.IGNORECASE)
_WRAPPERS = re.compile(r"^(module\.)+|\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")


@dataclass(frozen=True)
class NamedParameter:
    """A trainable parameter with what routing may ask of it.

    role: of ROLE_PATTERNS, or "convolution", "experts" (stacked matrices), "router" or "other". linear: the weight of a
    linear layer. block: that layer belongs to a layer of the network, not to its embedding or head. tied: more than
    one module shares it. transposed: stored as (inputs, outputs). heads, key_heads: of its attention, where known.
    """

    name: str
    tensor: Tensor
    role: str
    linear: bool
    block: bool
    tied: bool
    transposed: bool = False
    heads: int | None = None
    key_heads: int | None = None

    @property
    def part(self) -> str:
        """What rates and decay by role distinguish: embedding, head, norm, bias, vector or body."""
        if self.role in ("embedding", "head", "norm", "bias"):
            return self.role
        return "vector" if self.tensor.ndim < 2 else "body"


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
    plain = plain_name(name)
    return next((role for role, pattern in ROLE_PATTERNS if re.search(pattern, plain, re.IGNORECASE)), "other")


def describe(model: nn.Module) -> list[NamedParameter]:
    """The trainable parameters of a model, each once, in the order of `named_parameters`."""
    output = _output_weight(model)
    uses: dict[Tensor, list[tuple[str, list[nn.Module], str]]] = {}
    for prefix, module in model.named_modules():
        for attribute, tensor in module.named_parameters(recurse=False):
            full = f"{prefix}.{attribute}" if prefix else attribute
            uses.setdefault(tensor, []).append((plain_name(full), _ancestors(model, prefix), attribute))
    described = []
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            found = [_describe(name, tensor, *use, tensor is output) for use in uses[tensor]]
            linear = next((d for d in found if d.linear), found[0])
            block = any(d.block for d in found) and len({d.role for d in found} & {"embedding", "head"}) == 0
            described.append(replace(found[0], linear=linear.linear, block=block, tied=len(found) > 1))
    return described


def _describe(
    name: str, tensor: Tensor, path: str, modules: list[nn.Module], attribute: str, is_output: bool
) -> NamedParameter:
    module = modules[-1]
    transposed = type(module).__name__ == "Conv1D" and tensor.ndim == 2
    weight = attribute == "weight" and tensor.ndim == 2
    linear = weight and (isinstance(module, nn.Linear) or transposed) or attribute == "in_proj_weight"
    block = linear and not is_output and _in_a_layer(path)
    heads, key_heads = _attention_heads(modules)
    role = _role(tensor, path, module, is_output, linear, block)
    return NamedParameter(name, tensor, role, linear, block, False, transposed, heads, key_heads)


def _role(tensor: Tensor, path: str, module: nn.Module, is_output: bool, linear: bool, block: bool) -> str:
    kind, named = type(module).__name__.lower(), role_of(path)
    if tensor.ndim < 2:
        return named if named == "bias" else "norm" if "norm" in kind or named == "norm" else "other"
    if isinstance(module, nn.Embedding) or (named == "embedding" and not linear):
        return "embedding"
    if is_output:
        return "head"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if not linear:
        return _unusual(tensor, path.lower(), kind)
    if not block:
        return "head" if re.search(r"(head|classifier|score|output|decoder|fc|qa_outputs)\b", path) else "other"
    if named not in ("other", "head", "norm", "embedding"):
        return named
    return "attention_output" if re.search(r"attn|attention", path, re.IGNORECASE) else "mlp"


def _unusual(tensor: Tensor, path: str, kind: str) -> str:
    """The role of a matrix, or of several in one tensor, that belongs to no linear layer."""
    if tensor.ndim == 3 and "expert" in path + kind:
        return "experts"
    return "router" if tensor.ndim == 2 and ("router" in path + kind or path.endswith("gate.weight")) else "other"


def _in_a_layer(path: str) -> bool:
    """Whether a module path leads through an element of a list of layers, or through an attention or MLP module."""
    parts = path.split(".")[:-1]
    repeated = any(part.isdigit() for part in parts[:-1])
    return repeated or any(_IN_A_LAYER.search(part) and "head" not in part.lower() for part in parts)


def _ancestors(model: nn.Module, prefix: str) -> list[nn.Module]:
    modules = [model]
    for part in prefix.split(".") if prefix else []:
        modules.append(getattr(modules[-1], part))
    return modules


def _attention_heads(modules: list[nn.Module]) -> tuple[int | None, int | None]:
    """Query and key heads, as the nearest module or its configuration says."""
    for module in reversed(modules):
        for source in (module, getattr(module, "config", None)):
            if (heads := _number(source, _HEADS)) is not None:
                return heads, _number(source, _KEY_HEADS) or heads
    return None, None


def _number(source: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(source, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _output_weight(model: nn.Module) -> Tensor | None:
    """The weight of the output layer, where the model, or what wrappers hold, can say it."""
    for module in model.modules():
        ask = getattr(type(module), "get_output_embeddings", None)
        layer = ask(module) if ask is not None else None
        if isinstance(getattr(layer, "weight", None), Tensor):
            return layer.weight  # type: ignore[union-attr]
    return None
