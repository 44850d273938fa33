"""Fine-tunes a language model on prompt and response pairs, the loss on responses only, with any optimizer.

    python run_sft.py --model_name_or_path runs/NAME/model_N --train_file pairs.jsonl --optimizer ldadamw --rank 8 ...
    python run_sft.py --model_name_or_path meta-llama/Llama-2-7b-hf --task_name gsm8k --optimizer ldadamw ...

Files are .jsonl or .json with prompt and response, question and answer (GSM8K), or instruction, input and output
(Alpaca). Prints the loss per response token before and after, and with --generate N the exact matches of the number
after `####`; writes results.json and the model.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from peft_pretraining.errors import UsageError
from peft_pretraining.finetuning.command import LoopFlags, builder, read_flags
from peft_pretraining.flags.fields import flag

_NAMES = {"--learning_rate": "--lr"}


@dataclass(frozen=True, kw_only=True)
class SftFlags(LoopFlags):
    """Flags of run_sft.py beside the optimizer's."""

    task_name: str | None = flag(None, choices=("gsm8k",), help="pairs from the hub: gsm8k (openai/gsm8k, main)")
    train_file: str | None = flag(None, help="pairs to learn, .jsonl or .json")
    validation_file: str | None = flag(None, help="pairs to evaluate (default: the last twentieth of --train_file)")
    per_device_train_batch_size: int = flag(1, help="examples per micro-batch", aliases=("batch_size",))
    gradient_accumulation_steps: int = flag(1, help="micro-batches per update")
    per_device_eval_batch_size: int = flag(8, help="examples per batch of an evaluation")
    max_length: int = flag(512, help="tokens of prompt and response; longer prompts are cut at their left")
    dtype: str = flag("bfloat16", choices=("bfloat16", "float32"), help="storage of the weights")
    activation_checkpointing: bool = flag(False, help="recompute activations in the backward pass to save memory")
    generate: int = flag(0, help="validation prompts to answer at the end; the number after #### is compared")
    max_new_tokens: int = flag(256, help="tokens of a generated answer at most")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    try:
        return _run([_renamed(word) for word in (sys.argv[1:] if argv is None else argv)])
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


def _renamed(word: str) -> str:
    name, equals, value = word.partition("=")
    return _NAMES.get(name, name) + equals + value


def _run(argv: Sequence[str]) -> int:
    flags, optimizer = read_flags(SftFlags, argv, "run_sft.py", __doc__ or "")
    if (flags.task_name is None) == (flags.train_file is None):
        raise UsageError("give either --task_name or --train_file")
    # Imported late: a mistake in a flag should not wait for transformers.
    from peft_pretraining.finetuning.classification import as_settings
    from peft_pretraining.finetuning.instruction import InstructionSettings, finetune
    from peft_pretraining.finetuning.pairs import load_pairs
    from peft_pretraining.finetuning.results import table, write_results

    seeds = flags.seeds()
    train, validation = load_pairs(flags.task_name, flags.train_file, flags.validation_file)
    folder = flags.folder(f"runs/sft_{optimizer.optimizer}")
    settings = InstructionSettings(
        flags.model_name_or_path,
        flags.max_length,
        flags.lora_rank,
        flags.per_device_eval_batch_size,
        flags.generate,
        flags.max_new_tokens,
        flags.dtype,
        flags.activation_checkpointing,
    )
    results = []
    for seed in seeds:
        place = folder if len(seeds) == 1 else folder / f"seed_{seed}"
        results.append(finetune(train, validation, settings, flags.loop(), builder(optimizer), seed, place))
        given = {"optimizer": optimizer.optimizer, "lr": optimizer.lr, **optimizer.arguments()}
        write_results(folder / "results.json", {**given, **as_settings(settings, flags.loop())}, results)
    print(table(results, percent=False))
    print(f"results: {folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
