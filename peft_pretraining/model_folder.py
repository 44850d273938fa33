"""Models as ordinary Hugging Face folders: written for anybody's tools, read back strictly."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from peft_pretraining.errors import UsageError
from peft_pretraining.model import PretrainingLlama

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def save_model(
    model: PretrainingLlama,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a LlamaForCausalLM folder that `AutoModelForCausalLM.from_pretrained` reads, and the tokenizer
    into it.

    `state_dict` holds whole tensors under the model's parameter names, for a model whose own are sharded.
    With a tokenizer, the special tokens written to the configuration are the tokenizer's. Raises OSError.
    """
    config = copy.deepcopy(model.config)
    if tokenizer is not None:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
    config.architectures = [LlamaForCausalLM.__name__]
    weights = dict(model.state_dict() if state_dict is None else state_dict)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(contiguous, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def load_model_weights(model: PretrainingLlama, folder: str | Path) -> None:
    """Copies every weight of a Hugging Face LLaMA folder into `model` (not sharded yet), whatever their
    dtypes.

    Raises UsageError for a folder without weights, a damaged file, or a checkpoint of another model: the
    message names the first tensor that differs. The model is then partly overwritten.
    """
    parameters = dict(model.named_parameters())
    missing = dict.fromkeys(parameters)
    for name, saved in _saved_tensors(Path(folder)):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        wanted = parameters.get(name)
        if wanted is None:
            _refuse(folder, f"has a tensor {name} {tuple(saved.shape)} that the model lacks")
        elif wanted.shape != saved.shape:
            _refuse(folder, f"{name} is {tuple(saved.shape)} there and {tuple(wanted.shape)} in the model")
        else:
            wanted.copy_(saved)
            del missing[name]
    if missing:
        _refuse(folder, f"lacks {next(iter(missing))}")


def _refuse(folder: str | Path, difference: str) -> None:
    raise UsageError(
        f"{folder}: a checkpoint of another model: {difference}. "
        "Give the --model_config the checkpoint was trained with, or the checkpoint of this model"
    )


def _saved_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one at a time, of one safetensors file or of the several that an index lists."""
    index = folder / _INDEX
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
        for shard in shards:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    yield name, file.get_tensor(name)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: no model here ({error.filename or WEIGHTS} is missing). Give a model_N folder"
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}: damaged model file ({error}). Use an earlier checkpoint") from error
