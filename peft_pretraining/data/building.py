"""Puts the data of a run together: what rank 0 finds out is told to the other ranks."""

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from loguru import logger

from peft_pretraining.data.builtin_tokenizer import builtin_tokenizer
from peft_pretraining.data.cache import check_cache
from peft_pretraining.data.config import DEFAULT_HUB_TOKENIZER, DataConfig
from peft_pretraining.data.holdout import HELD_OUT_OF
from peft_pretraining.data.shards import Corpus
from peft_pretraining.data.sources import find_corpus
from peft_pretraining.data.stream import Share, TrainingData
from peft_pretraining.data.tokenization import Encoder, check_tokenizer, load_tokenizer
from peft_pretraining.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Value = TypeVar("Value")
_MOST_WORKERS = 4
_CORES_PER_WORKER = 4


class Processes(Protocol):
    """What the data asks of the processes that share a run, as `distributed.world.World` answers it."""

    def on_main(self, make: Callable[[], Value], work: str) -> Value:
        """What rank 0 makes, on every process; a UsageError on all of them where it meets one."""

    def working(self, work: str) -> AbstractContextManager[None]:
        """Around minutes of work of this process, for which the others wait."""


class Alone:
    """`Processes` of one process."""

    def on_main(self, make: Callable[[], Value], work: str) -> Value:
        return make()

    def working(self, work: str) -> AbstractContextManager[None]:
        return nullcontext()


def build_data(
    config: DataConfig,
    *,
    vocab_size: int,
    batch_size: int,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    processes: Processes | None = None,
    seed: int = 0,
    positions: int | None = None,
) -> TrainingData:
    """The data of one rank.

    batch_size: sequences of a micro-batch. global_batch: sequences of an update over all ranks and
    micro-batches. seed: of the order, where --data_seed is not given. processes: those of the run, if there are
    several; with them this is a collective, and only rank 0 asks the hub. positions: those that the model is made
    for. Raises UsageError.
    """
    processes = processes or Alone()
    share = Share(batch_size, global_batch, rank, world_size)
    corpus, tokenizer = processes.on_main(lambda: _find(config, vocab_size), "prepares the data")
    if config.dataset == "builtin" and rank:
        with processes.working("prepares the data"):
            corpus = _own_copy(config, corpus)
    if positions is not None and config.max_length > positions and rank == 0:
        logger.warning(
            "--max_length {} is more than the model's {} positions (max_position_embeddings): it trains, but other "
            "programs may refuse or cut longer texts; set it in --model_config to the length you train with",
            config.max_length,
            positions,
        )
    encoder = Encoder(tokenizer, vocab_size)
    order = {
        "dataset": config.dataset if config.dataset in ("c4", "builtin") else "files",
        "files": corpus.fingerprint,
        "text_column": config.text_column,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
        "packing": config.packing,
        "data_seed": seed if config.data_seed is None else config.data_seed,
        "shuffle_block": config.shuffle_block,
        **_unusual(config, corpus),
    }
    workers = _usual_workers() if config.workers is None else config.workers
    return TrainingData(config, corpus, tokenizer, encoder, share, order, workers)


def _unusual(config: DataConfig, corpus: Corpus) -> dict[str, Any]:
    """What decides the documents beyond the usual: left out where it is as usual, so that older positions still fit."""
    unusual: dict[str, Any] = {}
    if config.txt_documents != "file" and any(shard.kind == "text" for shard in corpus.train):
        unusual["txt_documents"] = config.txt_documents
    if corpus.hold_out and corpus.holdout != HELD_OUT_OF:
        unusual["holdout"] = corpus.holdout
    return unusual


def _find(config: DataConfig, vocab_size: int) -> tuple[Corpus, "PreTrainedTokenizerFast"]:
    check_cache()
    name = config.tokenizer or ("builtin" if config.dataset == "builtin" else DEFAULT_HUB_TOKENIZER)
    corpus = find_corpus(config)
    if name == "builtin":
        return corpus, check_tokenizer(builtin_tokenizer(vocab_size), name, vocab_size)
    return corpus, load_tokenizer(name, vocab_size, config.data_timeout)


def _own_copy(config: DataConfig, expected: Corpus) -> Corpus:
    """The builtin corpus as this machine keeps it, which may not be the machine of rank 0."""
    own = find_corpus(config)
    if own.fingerprint != expected.fingerprint:
        raise UsageError(
            "--dataset builtin differs between the machines of this run: install the same versions of the packages"
        )
    return own


def _usual_workers() -> int:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // processes // _CORES_PER_WORKER))
