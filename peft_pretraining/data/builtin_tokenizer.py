"""A byte-level BPE of the model's vocabulary, trained once on the builtin corpus."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from loguru import logger

from peft_pretraining.data import builtin_corpus
from peft_pretraining.data.cache import cache_folder
from peft_pretraining.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAD, _EOS, _BOS = "<pad>", "</s>", "<s>"  # ids 0, 1, 2; pad and EOS as in T5
_BYTES = 256


def builtin_tokenizer(vocab_size: int) -> "PreTrainedTokenizerFast":
    """The tokenizer of `vocab_size` ids, trained on the first call and then kept. Raises UsageError."""
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _BYTES + 3:
        raise UsageError(
            f"--tokenizer builtin needs a vocab_size of {_BYTES + 3} or more (bytes and pad, EOS, BOS), "
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
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        pad_token=_PAD,
        eos_token=_EOS,
        bos_token=_BOS,
        clean_up_tokenization_spaces=False,
    )


def _train(corpus: Path, vocab_size: int, file: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    started = time.monotonic()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_PAD, _EOS, _BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(builtin_corpus.texts(corpus), trainer)
    temporary = Path(tempfile.mkdtemp(dir=file.parent))
    try:
        tokenizer.save(str(temporary / file.name))
        (temporary / file.name).rename(file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("trained a tokenizer of {} ids in {:.0f} s", vocab_size, time.monotonic() - started)
