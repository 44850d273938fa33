"""Continues a text with a trained checkpoint: `python -m peft_pretraining.generate runs/demo/model_300 "The"`."""

import argparse
import sys
from collections.abc import Sequence
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


def continue_text(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """The prompt and up to `max_tokens` sampled tokens, fewer where the model ends the text.

    temperature: 0 takes the likeliest token each time; 1 samples from the model's own distribution. Seeds
    torch's global generators. Raises UsageError for a prompt without tokens.
    """
    # a tokenizer that ends every text with EOS would end the prompt with it
    encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    if encoded["input_ids"].shape[1] == 0:
        raise UsageError("the prompt has no tokens. Give a word or more to continue")
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    tokens = model.generate(  # type: ignore[misc]  # its mixin is typed for a protocol
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m peft_pretraining.generate", description=__doc__)
    parser.add_argument("checkpoint", help="a model_N folder of a run, or any Hugging Face model folder")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--max_tokens", type=int, default=64, help="tokens to add at most (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token each time (default: 0.8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args(argv)
    if arguments.max_tokens < 1:
        parser.error(f"--max_tokens {arguments.max_tokens}: must be at least 1")
    if arguments.temperature < 0:
        parser.error(f"--temperature {arguments.temperature}: must be 0 or more")
    try:
        model, tokenizer = load_checkpoint(arguments.checkpoint, arguments.device)
        text = continue_text(
            model,
            tokenizer,
            arguments.prompt,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
