"""Fine-tunes a classifier on a GLUE task, or on files of one's own, with any optimizer of this package.

    python run_glue.py --model_name_or_path roberta-base --task_name mrpc --optimizer galore_adamw --rank 4 ...
    python run_glue.py --model_name_or_path runs/NAME/model_N --train_file train.csv --validation_file dev.csv ...

Prints the scores of the last and of the best epoch over all seeds and writes them to results.json. The published
command lines of GaLore and LDAdam are understood (`--enable_galore`, `--lora_all_modules`, `--lora_r`, ...).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_pretraining.errors import UsageError
from peft_pretraining.finetuning.command import LoopFlags, builder, read_flags
from peft_pretraining.flags.fields import flag

_SWITCHES = {"--enable_galore": ["--optimizer", "galore_adamw"], "--lora_all_modules": [], "--pad_to_max_length": []}
_NAMES = {"--lora_r": "--rank", "--learning_rate": "--lr"}


@dataclass(frozen=True, kw_only=True)
class GlueFlags(LoopFlags):
    """Flags of run_glue.py beside the optimizer's."""

    task_name: str | None = flag(None, help="a GLUE task: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli")
    train_file: str | None = flag(None, help="csv, tsv, json, jsonl or parquet with one or two texts and `label`")
    validation_file: str | None = flag(None, help="the same for validation")
    max_length: int = flag(128, help="tokens of an example; longer ones are cut", aliases=("max_seq_length",))


def from_published(argv: Sequence[str]) -> list[str]:
    """The words of a published command line in this project's flags."""
    words: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name in _SWITCHES:
            words += _SWITCHES[name]
        else:
            words.append(_NAMES.get(name, name) + equals + value)
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    try:
        return _run(from_published(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    flags, optimizer = read_flags(GlueFlags, argv, "run_glue.py", __doc__ or "")
    if flags.task_name is None and flags.train_file is None:
        raise UsageError("give --task_name, or --train_file and --validation_file")
    # Imported late: a mistake in a flag should not wait for transformers.
    from peft_pretraining.finetuning.classification import ClassificationSettings, as_settings, finetune
    from peft_pretraining.finetuning.results import table, write_results
    from peft_pretraining.finetuning.tasks import load_task

    seeds, loop = flags.seeds(), flags.loop()
    data = load_task(flags.task_name, flags.train_file, flags.validation_file)
    folder = flags.folder(f"runs/glue_{data.task.name}_{optimizer.optimizer}")
    settings = ClassificationSettings(
        flags.model_name_or_path, flags.max_length, flags.lora_rank, flags.per_device_eval_batch_size
    )
    results = []
    for seed in seeds:
        results.append(finetune(data, settings, loop, builder(optimizer), seed, folder))
        write_results(
            Path(folder) / "results.json",
            {
                "task": data.task.name,
                "optimizer": optimizer.optimizer,
                "lr": optimizer.lr,
                **optimizer.arguments(),
                **as_settings(settings, loop),
            },
            results,
        )
    print(table(results))
    print(f"results: {folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
