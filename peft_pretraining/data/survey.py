"""What a corpus holds: counted where it is small, estimated from samples where it is large."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from loguru import logger

from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.holdout import Document
from peft_pretraining.data.records import Reader
from peft_pretraining.data.shards import Corpus, Shard
from peft_pretraining.data.tokenization import Encoder

# Samples: so many characters in all, of so many shards, a part of each.
_CHARACTERS = 4_000_000
_SHARDS = 16
_LEAST_DOCUMENTS = 20
_MUCH = 0.3


@dataclass(frozen=True)
class Survey:
    """files, documents and tokens of the training data (held-out documents among them); `exact` if all were counted.

    median_length: tokens of a document. padding, cut: shares of the positions of unpacked rows of `max_length` tokens
    that are padding, and of the tokens that are cut off.
    """

    files: int
    documents: float
    tokens: float
    exact: bool
    median_length: float
    padding: float
    cut: float

    def report(self, config: DataConfig) -> None:
        """Logs a line, and what to do about rows that hold little."""
        about = "" if self.exact else "about "
        logger.info(
            "{}: {} files, {}{:,.0f} documents, {}{:,.0f} tokens, median {:,.0f} tokens per document",
            config.dataset,
            f"{self.files:,}",
            about,
            self.documents,
            about,
            self.tokens,
            self.median_length,
        )
        if config.packing:
            return
        text = f"rows of {config.max_length} tokens: {self.padding:.0%} padding, {self.cut:.0%} of the text is cut off"
        if max(self.padding, self.cut) > _MUCH:
            logger.warning("{}; --packing fills the rows and uses all of the text", text)
        else:
            logger.info("{}", text)


def survey(config: DataConfig, corpus: Corpus, encoder: Encoder) -> Survey | None:
    """Counts or estimates local training data; None for the hub's, which would have to be downloaded for it."""
    shards = corpus.train
    if any(shard.remote for shard in shards):
        return None
    chosen = shards[:: -(-len(shards) // _SHARDS)]
    counts, bytes_read, whole = _sample(config, corpus, chosen, encoder)
    if not counts:
        return None
    exact = whole and len(chosen) == len(shards)
    scale = 1.0 if exact else sum(shard.size for shard in shards) / max(bytes_read, 1.0)
    lengths = [min(count, config.max_length) for count in counts]
    return Survey(
        files=len(shards),
        documents=len(counts) * scale,
        tokens=sum(counts) * scale,
        exact=exact,
        median_length=median(counts),
        padding=1 - sum(lengths) / (len(lengths) * config.max_length),
        cut=1 - sum(lengths) / sum(counts),
    )


def _sample(
    config: DataConfig, corpus: Corpus, shards: Sequence[Shard], encoder: Encoder
) -> tuple[list[int], float, bool]:
    """(tokens of each document read, bytes of the files they stand for, whether all was read)."""
    counts: list[int] = []
    stand_for, whole = 0.0, True
    for shard in shards:
        texts, share = _read(config, corpus, shard, _CHARACTERS // len(shards), encoder)
        counts += [len(ids) for ids in encoder.documents(texts) if ids]
        stand_for += share * shard.size
        whole = whole and share == 1.0
    return counts, stand_for, whole


def _read(
    config: DataConfig, corpus: Corpus, shard: Shard, limit: int, encoder: Encoder
) -> tuple[list[Document], float]:
    """(documents from the start of a shard, the share of the shard that they are)."""
    reader = Reader.of(config, corpus.filesystem, encoder)
    parser, skipped = DocumentParser(config.text_column, strict=False), Skipped()
    texts: list[Document] = []
    raw, rows = bytearray(), 0
    for records in reader.records(shard):
        for record in records:
            if len(raw) >= limit and len(texts) >= _LEAST_DOCUMENTS:
                return texts, _share(shard, raw, rows, reader.wide_ids)
            rows += 1
            raw += (record.data or b"") + b"\n"
            text = parser.text(shard, record, skipped)
            texts += [] if text is None else [text]
    return texts, 1.0


def _share(shard: Shard, raw: bytearray, rows: int, wide_ids: bool) -> float:
    """What share of a shard `rows` records of these bytes are."""
    if shard.kind == "parquet":
        import pyarrow.parquet as pq

        return rows / max(pq.read_metadata(shard.path).num_rows, rows)
    if shard.kind == "ids":
        return min(1.0, len(raw) / (1 if wide_ids else 2) / shard.size)
    size = len(zlib.compress(raw, 6)) if shard.compression else len(raw)
    return min(1.0, size / shard.size)
