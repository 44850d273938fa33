"""Trained models from Hugging Face folders, for commands that use them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from peft_pretraining.errors import UsageError


def load_checkpoint(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in eval mode and its tokenizer from a `model_N` folder. Raises UsageError if it is none."""
    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"{folder}: no checkpoint (no config.json there). Give a model_N folder of a run")
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{folder}: the checkpoint cannot be read ({reason}). Use another one") from error
    try:
        return nn.Module.to(model, device).eval(), tokenizer
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device {device}: torch cannot use it here ({reason}). Give cpu, or leave it out"
        ) from error
