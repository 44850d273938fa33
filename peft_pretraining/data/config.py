"""The flags of the data: what is read, how it becomes rows of tokens, and how its faults are met."""

import re
from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.data.holdout import HELD_OUT_OF
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import TokenCount, flag

DEFAULT_HUB_TOKENIZER = "t5-base"
_LEAST = {"max_length": 2, "shuffle_block": 1, "eval_tokens": 1, "lanes": 1, "workers": 0}
TXT_DOCUMENTS = ("file", "paragraph", "line")
_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and the rows of tokens a run sees. Raises UsageError for impossible values."""

    _argument_group_name: ClassVar[str] = "data"

    dataset: str = flag(
        "c4",
        help="c4 (allenai/c4 en, streamed from the hub), builtin (documentation of the installed Python "
        "packages, needs no network), or a path or glob of json, jsonl, txt (or .gz, .zst) or parquet files, or of "
        "bin files of token ids as nanoGPT writes them",
    )
    eval_dataset: str | None = flag(
        None,
        help="path or glob of the files to validate on (or builtin, or c4: its validation part), instead of the "
        "validation files of --dataset or of documents held out from it",
    )
    holdout: int = flag(
        HELD_OUT_OF,
        metavar="N",
        help="keep one document in N for validation, chosen by its content, where --dataset has no validation files "
        "and --eval_dataset is not given; 0 keeps none",
    )
    dataset_revision: str = flag("main", help="branch, tag or commit of allenai/c4 on the hub")
    text_column: str = flag("text", help="field of json or parquet records that holds a document (text, or token ids)")
    txt_documents: str = flag(
        "file",
        choices=TXT_DOCUMENTS,
        help="what is a document in a txt file: the whole file (in parts of 1 MiB, if it is longer), each paragraph "
        "between blank lines, or each line",
    )
    tokenizer: str | None = flag(
        None,
        help="Hugging Face name, the folder of a saved tokenizer or its tokenizer.json, a SentencePiece "
        "tokenizer.model, or builtin: a byte-level BPE of the model's vocabulary, trained "
        f"once on the builtin corpus (default: {DEFAULT_HUB_TOKENIZER}; builtin with --dataset builtin)",
    )
    max_length: int = flag(256, help="tokens in a row")
    packing: bool = flag(
        False, help="fill rows with documents joined by EOS, instead of one padded or cut document a row"
    )
    document_mask: bool = flag(
        False,
        help="with --packing: tokens attend only to their own document, not to those before it in the row",
    )
    workers: int | None = flag(
        None,
        help="processes that prepare data, for each training process; 0 prepares in the training process "
        "(default: 1 to 4 by the number of cores)",
    )
    strict_data: bool = flag(False, help="stop at a damaged document or shard instead of skipping it")
    eval_tokens: TokenCount = flag(
        TokenCount("10M"), help="tokens of the validation set, as 10M; fewer where fewer exist"
    )
    data_seed: int | None = flag(None, help="seed of the data order (default: --seed)")
    lanes: int | None = flag(
        None,
        help="independent streams the data is split into; must divide the sequences of an update and be a "
        "multiple of the number of processes, now and on resume (default: about 16)",
    )
    shuffle_block: int = flag(1024, help="documents of a stream shuffled at a time; 1 keeps their order in a shard")
    skip_batches: str | None = flag(
        None,
        metavar="A-B",
        help="updates' worth of data to pass over, counted from 1: 120-130, or 120-130,400-400",
    )
    data_timeout: float = flag(
        300.0, help="seconds without new data from a shard after which the run ends and names it"
    )

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} {value}: give at least {least}")
        if self.data_seed is not None and self.data_seed < 0:
            raise UsageError(f"--data_seed {self.data_seed}: give 0 or more")
        if not self.data_timeout > 0:
            raise UsageError(f"--data_timeout {self.data_timeout}: give a number of seconds above 0")
        if self.document_mask and not self.packing:
            raise UsageError("--document_mask needs --packing: without it a row holds one document")
        if self.holdout < 0 or self.holdout == 1:
            raise UsageError(f"--holdout {self.holdout}: give 2 or more (one document in so many), or 0 for none")
        if self.txt_documents not in TXT_DOCUMENTS:
            raise UsageError(f"--txt_documents {self.txt_documents}: give one of {', '.join(TXT_DOCUMENTS)}")
        if self.dataset_revision != "main" and "c4" not in (self.dataset, self.eval_dataset):
            raise UsageError(f"--dataset_revision {self.dataset_revision} needs --dataset c4: leave it out")
        parse_ranges(self.skip_batches)


def parse_ranges(text: str | None) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges of `--skip_batches`, `120-130,400-400`. Raises UsageError."""
    ranges = []
    for part in text.split(",") if text is not None else ():
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last:
            raise UsageError(f"--skip_batches {text}: give ranges A-B with 1 <= A <= B, as 120-130")
        ranges.append((first, last))
    return tuple(ranges)
