"""Continues texts with a trained checkpoint: `python -m peft_pretraining.generate runs/demo "The" "A list"`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from peft_pretraining.errors import UsageError
from peft_pretraining.model.loading import load_checkpoint
from peft_pretraining.run_folder.layout import newest_checkpoint


def continue_text(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and up to `max_tokens` sampled tokens, fewer where the model ends the text.

    temperature: 0 takes the likeliest token each time; 1 samples from the model's own distribution. top_k: only from
    so many likeliest tokens; 0 from all. top_p: only from the likeliest tokens that together have this probability
    (Holtzman et al. 2020). Seeds torch's global generators. Raises UsageError for a prompt without tokens.
    """
    # a tokenizer that ends every text with EOS would end the prompt with it
    encoded = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    if encoded["input_ids"].shape[1] == 0:
        raise UsageError("the prompt has no tokens. Give a word or more to continue")
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
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
    parser.add_argument(
        "checkpoint", help="a model_N folder, a run folder (its newest checkpoint is taken), or any Hugging Face model"
    )
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="the text to continue; several are possible")
    parser.add_argument("--max_tokens", type=int, default=64, help="tokens to add at most (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token each time (default: 0.8)"
    )
    parser.add_argument("--top_k", type=int, default=0, help="sample from so many likeliest tokens (default: 0, all)")
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens that together have this probability (default: 1, all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, the same for each prompt (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args(argv)
    if arguments.max_tokens < 1:
        parser.error(f"--max_tokens {arguments.max_tokens}: must be at least 1")
    if arguments.temperature < 0:
        parser.error(f"--temperature {arguments.temperature}: must be 0 or more")
    if arguments.top_k < 0:
        parser.error(f"--top_k {arguments.top_k}: must be 0 or more")
    if not 0 < arguments.top_p <= 1:
        parser.error(f"--top_p {arguments.top_p}: must be above 0 and at most 1")
    try:
        model, tokenizer = load_checkpoint(newest_checkpoint(Path(arguments.checkpoint)), arguments.device)
        for index, prompt in enumerate(arguments.prompts):
            text = continue_text(
                model,
                tokenizer,
                prompt,
                max_tokens=arguments.max_tokens,
                temperature=arguments.temperature,
                top_k=arguments.top_k,
                top_p=arguments.top_p,
                seed=arguments.seed,
            )
            sys.stdout.write(("\n" if index else "") + f"{text}\n")
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
