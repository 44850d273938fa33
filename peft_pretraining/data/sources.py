"""Finds the corpus that --dataset names, and sees to it that it can be read before a run starts."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import islice

from loguru import logger

from peft_pretraining.data.builtin_corpus import ensure_corpus
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import NO_TEXT, Skipped
from peft_pretraining.data.files import open_shard
from peft_pretraining.data.hub import hub_corpus
from peft_pretraining.data.lines import Record, is_array, split_records
from peft_pretraining.data.shards import Corpus, Shard, local_corpus, name_some
from peft_pretraining.errors import UsageError

# Files looked into before the start: all of a usual folder; of very many the smallest, as metadata is, and some others.
_PROBES = 2000
_PROBED_CHUNKS = 192  # 12 MB: more than the longest record


def find_corpus(config: DataConfig) -> Corpus:
    """The shards of --dataset and --eval_dataset. Raises UsageError, with what to do, where nothing can be read."""
    corpus = _find(config.dataset, "--dataset", config)
    if config.eval_dataset is not None:
        other = _find(config.eval_dataset, "--eval_dataset", config)
        validation = other.validation or other.train
        revision = "".join(sorted({corpus.revision, other.revision}))
        filesystem = corpus.filesystem or other.filesystem
        return dataclasses.replace(corpus, validation=validation, filesystem=filesystem, revision=revision)
    if not corpus.validation and config.holdout == 0:
        raise UsageError(
            f"--holdout 0: --dataset {config.dataset} has no validation files; give --eval_dataset, or leave "
            "--holdout out to hold out a share of the documents"
        )
    return dataclasses.replace(corpus, holdout=config.holdout)


def _find(dataset: str, flag: str, config: DataConfig) -> Corpus:
    if dataset == "c4":
        return hub_corpus(config.dataset_revision, config.data_timeout)
    if dataset == "builtin":
        return local_corpus(str(ensure_corpus()))
    try:
        return _with_documents(local_corpus(dataset), dataset, config)
    except UsageError as error:
        raise UsageError(str(error).replace("--dataset", flag)) from error


def _with_documents(corpus: Corpus, dataset: str, config: DataConfig) -> Corpus:
    """The corpus without files that hold no document, which are named once; under --strict_data with all of them.

    Raises UsageError if there is nothing left to train on, or no document in the validation files.
    """
    probes = _probed(corpus.train + corpus.validation)
    faults = {shard: _first_fault(shard, config) if shard.size else "empty" for shard in probes}
    bad = {shard: fault for shard, fault in faults.items() if fault is not None}
    train, validation = (tuple(s for s in part if s not in bad) for part in (corpus.train, corpus.validation))
    if not any(shard.size for shard in corpus.train):
        raise UsageError(
            f"--dataset {dataset}: nothing to read, every file is empty: {name_some(s.path for s in corpus.train)}"
        )
    for part, left in ((corpus.train, train), (corpus.validation, validation)):
        if part and not left:
            purpose = "read" if part is corpus.train else "validate on"
            reason = f"{part[0].path}: {bad[part[0]]}"
            raise UsageError(f"--dataset {dataset}: no document to {purpose} ({reason}); give text files")
    if config.strict_data:
        return corpus
    if bad:
        named = name_some(f"{shard.name} ({fault})" for shard, fault in bad.items())
        logger.warning("{}: {} files hold no document and are left out: {}", dataset, len(bad), named)
    return dataclasses.replace(corpus, train=train, validation=validation)


def _probed(shards: Sequence[Shard]) -> Sequence[Shard]:
    if len(shards) <= _PROBES:
        return shards
    smallest = sorted(shards, key=lambda shard: shard.size)[: _PROBES // 2]
    return list(dict.fromkeys([*smallest, *shards[:: -(-len(shards) // (_PROBES // 2))]]))


def _first_fault(shard: Shard, config: DataConfig) -> str | None:
    """Why the start of a shard holds no document, or None if it does."""
    try:
        if shard.kind == "ids":
            return None if shard.size % 2 == 0 else "an odd number of bytes, not token ids"
        if shard.kind == "parquet":
            return _parquet_fault(shard, config.text_column)
        if shard.kind == "json" and is_array(shard):
            return _array_fault(shard, config)
        return _line_fault(shard, config)
    except OSError as error:
        raise UsageError(f"{shard.path} cannot be read: {error}") from error


def _line_fault(shard: Shard, config: DataConfig) -> str | None:
    prose = shard.kind == "text"
    skipped, parser, good = Skipped(), DocumentParser(config.text_column, strict=False), 0
    fields: dict[str, None] = {}
    with open_shard(shard, None, 0.0) as file:
        documents = config.txt_documents if prose else "line"
        for rows in islice(split_records(file, documents), _PROBED_CHUNKS):
            for row in rows:
                good += parser.text(shard, Record(0, prose, *row), skipped) is not None
                if not prose and len(fields) < 20:
                    fields |= dict.fromkeys(_fields(row[0]))
            # Bytes that are no text have stretches that look like it.
            if good > (skipped.documents.total() if prose else 0):
                return None
    if skipped.shards:
        return skipped.shards[shard.name]
    if skipped.documents.keys() == {NO_TEXT} and fields:
        return _no_field(config.text_column, fields)
    reasons = ", ".join(skipped.documents) or "blank"
    return reasons if prose else f"{reasons} (--text_column {config.text_column})"


def _fields(line: bytes | None) -> Iterable[str]:
    try:
        value = json.loads((line or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return ()
    return value if isinstance(value, dict) else ()


def _no_field(text_column: str, names: Iterable[str]) -> str:
    names = list(names)
    if text_column in names:
        return f"field {text_column!r} holds no text (its fields: {', '.join(names)}: choose one with --text_column)"
    return f"no field {text_column!r} but {', '.join(names)}: name the one that holds the text with --text_column"


def _parquet_fault(shard: Shard, text_column: str) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(shard.path).names
    except pa.ArrowInvalid as error:
        return str(error)
    return None if text_column in names else _no_field(text_column, names)


def _array_fault(shard: Shard, config: DataConfig) -> str | None:
    from peft_pretraining.data.records import Reader

    parser, skipped = DocumentParser(config.text_column, strict=False), Skipped()
    try:
        for records in Reader.of(config, None).records(shard):
            if any(parser.text(shard, record, skipped) is not None for record in records):
                return None
    except UsageError as error:
        return str(error).removeprefix(f"{shard.name} has ")
    return ", ".join([*skipped.documents, *skipped.shards.values()]) or "empty"
