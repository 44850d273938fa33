"""Finds the corpus that --dataset names, and sees to it that it can be read before a run starts."""

from itertools import islice

from peft_pretraining.data.builtin_corpus import ensure_corpus
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.files import open_shard
from peft_pretraining.data.hub import hub_corpus
from peft_pretraining.data.lines import Record, is_array, split_records
from peft_pretraining.data.shards import Corpus, Shard, local_corpus
from peft_pretraining.errors import UsageError

_PROBES = 8
_PROBED_CHUNKS = 192  # 12 MB: more than the longest record


def find_corpus(config: DataConfig) -> Corpus:
    """The shards of --dataset. Raises UsageError, with what to do, where there is nothing to read."""
    if config.dataset == "c4":
        return hub_corpus(config.dataset_revision, config.data_timeout)
    if config.dataset == "builtin":
        return local_corpus(str(ensure_corpus()))
    corpus = local_corpus(config.dataset)
    _probe(corpus, config)
    return corpus


def _probe(corpus: Corpus, config: DataConfig) -> None:
    """Looks at the start of some shards. Raises UsageError if none of them holds a document."""
    step = -(-len(corpus.train) // _PROBES)
    faults = []
    for shard in corpus.train[::step]:
        fault = _first_fault(shard, config.text_column)
        if fault is None:
            return
        faults.append(f"{shard.path}: {fault}")
    raise UsageError(f"--dataset {config.dataset}: no document to read ({faults[0]}); give text files")


def _first_fault(shard: Shard, text_column: str) -> str | None:
    """Why the start of a shard holds no document, or None if it does."""
    try:
        if shard.kind == "parquet":
            return _parquet_fault(shard, text_column)
        if shard.kind == "json" and is_array(shard):
            return None
        return _line_fault(shard, text_column)
    except OSError as error:
        raise UsageError(f"{shard.path} cannot be read: {error}") from error


def _line_fault(shard: Shard, text_column: str) -> str | None:
    prose = shard.kind == "text"
    skipped, parser, good = Skipped(), DocumentParser(text_column, strict=False), 0
    with open_shard(shard, None, 0.0) as file:
        for rows in islice(split_records(file, prose), _PROBED_CHUNKS):
            good += sum(parser.text(shard, Record(0, prose, *row), skipped) is not None for row in rows)
            # Bytes that are no text have stretches that look like it.
            if good > (skipped.documents.total() if prose else 0):
                return None
    if skipped.shards:
        return skipped.shards[shard.name]
    reasons = ", ".join(skipped.documents) or "blank"
    return reasons if prose else f"{reasons} (--text_column {text_column})"


def _parquet_fault(shard: Shard, text_column: str) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(shard.path).names
    except pa.ArrowInvalid as error:
        return str(error)
    return None if text_column in names else f"no field {text_column!r} but {', '.join(names)} (--text_column)"
