"""`python -m peft_pretraining.tokenizer --dataset PATH --vocab_size N --output DIR`: a tokenizer of one's own text.

Trains a byte-level BPE on the training documents (not on held-out ones) and says what belongs into --model_config.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from peft_pretraining.data import DataConfig, DataError
from peft_pretraining.data.builtin_tokenizer import LEAST_VOCABULARY, SPECIAL_TOKENS, train_bpe
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.sources import find_corpus
from peft_pretraining.errors import UsageError

_DATA_FLAGS = ("dataset", "text_column", "txt_documents", "holdout")


def training_texts(config: DataConfig, most_bytes: int) -> Iterator[str]:
    """Documents from the start of every training file, as many bytes of each, `most_bytes` in all."""
    from peft_pretraining.data.records import Reader

    corpus = find_corpus(config)
    if any(shard.kind == "ids" for shard in corpus.train):
        raise UsageError(f"--dataset {config.dataset} holds token ids: a tokenizer is trained on text")
    reader = Reader.of(config, corpus.filesystem)
    parser, skipped = DocumentParser(config.text_column, strict=False), Skipped()
    left = most_bytes
    for number, shard in enumerate(corpus.train):
        share = left // (len(corpus.train) - number)
        for records in reader.records(shard):
            texts = (parser.text(shard, record, skipped) for record in records)
            for text in (text for text in texts if isinstance(text, str) and corpus.trains_on(text)):
                share -= len(text.encode())
                left -= len(text.encode())
                yield text
                if share <= 0:
                    break
            if share <= 0:
                break


def train(config: DataConfig, vocab_size: int, output: Path, most_bytes: int) -> dict[str, Any]:
    """Trains and saves a tokenizer; returns the fields of a model configuration that go with it. Raises UsageError."""
    from transformers import PreTrainedTokenizerFast

    if vocab_size < LEAST_VOCABULARY:
        raise UsageError(f"--vocab_size {vocab_size}: give {LEAST_VOCABULARY} or more (bytes and pad, EOS, BOS)")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UsageError(f"--output {output} exists already: give a new folder")
    bpe = train_bpe(training_texts(config, most_bytes), vocab_size)
    if bpe.get_vocab_size() < vocab_size:
        raise UsageError(
            f"--vocab_size {vocab_size}: the text gives no more than {bpe.get_vocab_size()} ids: give more text"
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL_TOKENS, clean_up_tokenization_spaces=False)
    try:
        tokenizer.save_pretrained(output)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error}") from error
    ids = {f"{role}_id": bpe.token_to_id(token) for role, token in SPECIAL_TOKENS.items()}
    return {"vocab_size": vocab_size, **ids}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    fields = DataConfig.__dataclass_fields__
    parser = argparse.ArgumentParser(
        prog="python -m peft_pretraining.tokenizer",
        description="Trains a byte-level BPE tokenizer on your own text and says what belongs into --model_config.",
    )
    for name in _DATA_FLAGS:
        field = fields[name]
        parser.add_argument(
            f"--{name}",
            type=type(field.default),
            default=None if name == "dataset" else field.default,
            required=name == "dataset",
            choices=field.metadata.get("choices"),
            help=field.metadata["help"].replace("%", "%%"),
        )
    parser.add_argument("--vocab_size", type=int, required=True, help="ids of the tokenizer, as 8192 or 32000")
    parser.add_argument("--output", type=Path, required=True, help="folder to save it in, which must be new or empty")
    parser.add_argument("--megabytes", type=int, default=200, help="text to train on at most (default: 200)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a mistake."""
    arguments = _parse(argv)
    started, output = time.monotonic(), arguments.output.expanduser()
    try:
        config = DataConfig(**{name: getattr(arguments, name) for name in _DATA_FLAGS})
        described = train(config, arguments.vocab_size, output, arguments.megabytes * 10**6)
    except (UsageError, DataError) as error:
        logger.error("{}", error)
        return 2
    logger.info(
        "a tokenizer of {:,} ids is in {}, in {:.0f} s", arguments.vocab_size, output, time.monotonic() - started
    )
    print("Put into your model configuration (a copy of configs/llama_60m.json, for example):")
    print("\n".join(f"  {line}" for line in json.dumps(described, indent=0).splitlines()[1:-1]))
    print(f"and train with: --tokenizer {output} --model_config YOUR_CONFIG.json --dataset {arguments.dataset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
