"""Reading a model's shape from a JSON file and refusing, with a remedy, what could not be trained."""

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from loguru import logger
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from peft_pretraining.errors import UsageError

_EXAMPLE = "configs/llama_9m.json"
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# A typing error of this size would build layers until memory ends.
_MOST = dict.fromkeys((*_SIZES, "num_key_value_heads", "head_dim"), 2**24) | {"num_hidden_layers": 4096}
# read by LlamaConfig without being fields of it; the published harnesses' configs have max_sequence_length
_OTHER_KEYS = {"model_type", "torch_dtype", "rope_theta", "rope_scaling", "max_sequence_length"}


def load_llama_config(path: str | Path) -> LlamaConfig:
    """The LLaMA shape in a JSON file with the keys of LlamaConfig, or in the config.json of a model folder.

    Raises UsageError that names the file, the key and the remedy.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    values = _read_json_object(file)
    _check_keys(values, file)
    try:
        config = LlamaConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise UsageError(f"--model_config {file}: {reason}. Correct this in the file") from error
    _check_values(config, file)
    return config


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        here = sorted(str(found) for found in file.parent.glob("*.json")) or sorted(
            str(found) for found in Path("configs").glob("*.json")
        )
        near = difflib.get_close_matches(str(file), here, n=3, cutoff=0.0)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Give a JSON file like {_EXAMPLE}"
        raise UsageError(f"--model_config {file}: cannot be read ({error.strerror}). {hint}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--model_config {file}: not valid JSON, {error}. Correct it there") from error
    if not isinstance(values, dict):
        raise UsageError(f"--model_config {file}: must be a JSON object of LlamaConfig keys, see {_EXAMPLE}")
    return values


def _check_keys(values: dict[str, Any], file: Path) -> None:
    model_type = values.get("model_type", "llama")
    if model_type != "llama":
        raise UsageError(f"--model_config {file}: model_type {model_type!r} is not supported. Only 'llama' is")
    missing = [key for key in _SIZES if key not in values]
    if missing:
        raise UsageError(f"--model_config {file}: lacks {', '.join(missing)}. Add them, see {_EXAMPLE}")
    known = {field.name for field in fields(LlamaConfig)} | _OTHER_KEYS
    for key in values.keys() - known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near:
            raise UsageError(f"--model_config {file}: unknown key {key}. Did you mean {near[0]}?")
        logger.warning("{}: the key {} means nothing to a LLaMA and is ignored", file, key)


def _check_values(config: LlamaConfig, file: Path) -> None:
    def refuse(key: str, remedy: str) -> None:
        raise UsageError(f"--model_config {file}: {key} is {getattr(config, key)}. {remedy}")

    for key in (*_SIZES, "num_key_value_heads", "head_dim"):
        if not 1 <= getattr(config, key) <= _MOST[key]:
            refuse(key, f"It must be from 1 to {_MOST[key]}")
    assert config.num_key_value_heads and config.rope_parameters  # LlamaConfig fills both in
    if config.num_attention_heads % config.num_key_value_heads:
        refuse("num_key_value_heads", f"It must divide num_attention_heads, {config.num_attention_heads}")
    if config.hidden_act not in ACT2FN:
        refuse("hidden_act", "LLaMA's is silu")
    rope_types = ("default", *ROPE_INIT_FUNCTIONS)
    if config.rope_parameters.get("rope_type") not in rope_types:
        refuse("rope_parameters", f"rope_type is one of {', '.join(rope_types)}")
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(config, key)
        if isinstance(token, int) and not 0 <= token < config.vocab_size:
            refuse(key, f"Token ids run from 0 to vocab_size - 1 = {config.vocab_size - 1}; null means none")
