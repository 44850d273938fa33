"""A byte-level BPE of the model's vocabulary, trained once on the builtin corpus."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from loguru import logger

from peft_pretraining.atomic_write import replacing
from peft_pretraining.data import builtin_corpus
from peft_pretraining.data.cache import cache_folder
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.modes import follow_umask

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Ids 0, 1 and 2; pad and EOS as in T5.
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
LEAST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def builtin_tokenizer(vocab_size: int) -> "PreTrainedTokenizerFast":
    """The tokenizer of `vocab_size` ids, trained on the first call and then kept. Raises UsageError."""
    from transformers import PreTrainedTokenizerFast

    if vocab_size < LEAST_VOCABULARY:
        raise UsageError(
            f"--tokenizer builtin needs a vocab_size of {LEAST_VOCABULARY} or more (bytes and pad, EOS, BOS), "
            f"and --model_config has {vocab_size}"
        )
    corpus = builtin_corpus.ensure_corpus()
    file = cache_folder() / "tokenizers" / f"{corpus.name}-{vocab_size}.json"
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{file}.lock"):
                if not file.is_file():
                    _train(corpus, vocab_size, file)
        except OSError as error:
            raise UsageError(
                f"--tokenizer builtin cannot be kept in {file}: {error}; set THRIFT_CACHE to a writable folder"
            ) from error
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **SPECIAL_TOKENS, clean_up_tokenization_spaces=False)


def train_bpe(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE of `vocab_size` ids, of which pad, EOS and BOS are 0, 1 and 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train(corpus: Path, vocab_size: int, file: Path) -> None:
    started = time.monotonic()
    tokenizer = train_bpe(builtin_corpus.texts(corpus), vocab_size)
    with replacing(file) as partial:
        tokenizer.save(str(partial))
        follow_umask(partial)
    logger.info("trained a tokenizer of {} ids in {:.0f} s", vocab_size, time.monotonic() - started)
