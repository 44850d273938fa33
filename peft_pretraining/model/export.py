"""Models as ordinary Hugging Face folders, for anybody's tools."""

import copy
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from peft_pretraining.model.llama import PretrainingLlama

WEIGHTS = "model.safetensors"


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
    config = _own_config(model.config)
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


def _own_config(config: LlamaConfig) -> LlamaConfig:
    """A copy without keys that came with somebody else's file: readers would act on a quantization_config."""
    copied = copy.deepcopy(config)
    for name in copied.to_dict().keys() - LlamaConfig().to_dict().keys():
        if name in vars(copied):
            delattr(copied, name)
    return copied
