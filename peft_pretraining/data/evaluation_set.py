"""The validation set: a fixed number of tokens, tokenised once and kept."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from loguru import logger

from peft_pretraining.atomic_write import replacing
from peft_pretraining.data.background import Background
from peft_pretraining.data.cache import cache_folder
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.holdout import Document
from peft_pretraining.data.rows import Batch, to_rows
from peft_pretraining.data.shards import Corpus
from peft_pretraining.data.tokenization import Encoder
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.modes import follow_umask

_DOCUMENTS_AT_ONCE = 256


class EvaluationSet:
    """The first validation documents, up to --eval_tokens: the same whatever the batch size and the ranks."""

    def __init__(self, config: DataConfig, corpus: Corpus, encoder: Encoder, order: Mapping[str, Any]) -> None:
        self._config, self._corpus, self._encoder, self._order = config, corpus, encoder, order
        self._ids: np.ndarray | None = None
        self._ends: np.ndarray | None = None

    def batches(self, size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """Every `world_size`-th row from row `rank` on. Raises UsageError without validation documents."""
        ids, ends = self.load()
        starts = np.concatenate([[0], ends[:-1]])
        rows = -(-len(ends) // world_size)
        own = [rank + index * world_size for index in range(rows)]
        for first in range(0, rows, size):
            sequences: list[np.ndarray | list[int]] = [
                ids[starts[row] : ends[row]] if row < len(ends) else [] for row in own[first : first + size]
            ]
            yield from to_rows(sequences, self._config.max_length, self._encoder).batches(size)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all rows one after another, where each row ends), from the cache or made for it.

        Raises UsageError without validation documents, or where the set cannot be kept.
        """
        if self._ids is None or self._ends is None:
            self._ids, self._ends = self._load()
        return self._ids, self._ends

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        from safetensors.numpy import save_file

        file = self._file()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{file}.lock"):
                if (kept := _kept(file)) is not None:
                    return kept
                ids, ends = self._tokenize()
                with replacing(file) as partial:
                    save_file({"ids": ids, "ends": ends}, partial)
                    follow_umask(partial)
                return ids, ends
        except OSError as error:
            raise UsageError(
                f"the validation set cannot be kept in {file}: {error}; set THRIFT_CACHE to a writable folder"
            ) from error

    def _file(self) -> Path:
        shards = self._corpus.validation or self._corpus.train
        described = {
            **self._order,
            "max_length": self._config.max_length,
            "eval_tokens": self._config.eval_tokens,
            # A local file can be rewritten at the same length.
            "written": [os.stat(shard.path).st_mtime_ns for shard in shards if not shard.remote],
        }
        for order_only in ("data_seed", "shuffle_block"):
            del described[order_only]
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "validation" / f"{key}.safetensors"

    def _tokenize(self) -> tuple[np.ndarray, np.ndarray]:
        logger.info("tokenising the validation set (once): up to {} tokens", self._config.eval_tokens)
        ids: list[np.ndarray] = []
        total = 0
        for sequence in self._sequences():
            sequence = sequence[: self._config.eval_tokens - total]
            ids.append(np.asarray(sequence, dtype=np.int32))
            total += len(sequence)
            if total >= self._config.eval_tokens:
                break
        if not ids:
            raise UsageError(
                f"--dataset {self._config.dataset}: no document to validate on{self._reason()}; give --eval_dataset "
                "PATH, add files named validation, or give more documents (as with --txt_documents paragraph)"
            )
        return np.concatenate(ids), np.cumsum([len(each) for each in ids]).astype(np.int64)

    def _reason(self) -> str:
        if not self._corpus.hold_out:
            return ""
        return f" (--holdout keeps one in {self._corpus.holdout}, by content, and none of these)"

    def _sequences(self) -> Iterator[list[int]]:
        """Rows as in training, in the order of the files."""
        length, left = self._config.max_length, list[int]()
        for texts in self._texts():
            if not self._config.packing:
                yield from (head for head in self._encoder.heads(texts, length) if head)
                continue
            for ids in self._encoder.documents(texts):
                left += ids
                while len(left) >= length:
                    yield left[:length]
                    del left[:length]
        if left:
            yield left

    def _texts(self) -> Iterator[list[Document]]:
        from peft_pretraining.data.records import Reader

        config, corpus = self._config, self._corpus
        reader = Reader.of(config, corpus.filesystem, self._encoder)
        parser = DocumentParser(config.text_column, config.strict_data)
        skipped, texts = Skipped(), list[Document]()
        for shard in corpus.validation or corpus.train:
            for records in Background(reader.records(shard), shard.name, config.data_timeout):
                found = (parser.text(shard, record, skipped) for record in records)
                texts += [text for text in found if text is not None and corpus.validates_on(text)]
                if len(texts) >= _DOCUMENTS_AT_ONCE:
                    yield texts
                    texts = []
        yield texts


def _kept(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """None where there is no whole file: a machine that loses its power may leave a torn one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded = load_file(file)
        return loaded["ids"], loaded["ends"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
