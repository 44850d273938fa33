"""Reads shards record by record, those of the hub and columns through Hugging Face `datasets` in streaming mode.

Lines have a builder of their own. The json builder of `datasets` gives up a block of 10 MiB for one
bad line and all of it at a damaged byte; this one passes lines on as bytes, so that a bad one costs one document,
and reads the network so that a fault repeats a request and not the shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from peft_pretraining.data.cache import cache_folder
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.faults import DAMAGED
from peft_pretraining.data.files import is_damage, open_shard
from peft_pretraining.data.lines import Record, is_array, split_records
from peft_pretraining.data.shards import Shard
from peft_pretraining.data.token_files import bin_records, holds_ids
from peft_pretraining.data.tokenization import Encoder
from peft_pretraining.errors import UsageError

Row = tuple[bytes | None, str | None, int]  # record, fault, number
_ROWS = 256
_SCHEMA = pa.schema({"record": pa.large_binary(), "fault": pa.string(), "row": pa.int64()})


@dataclass(frozen=True)
class Reader:
    """How shards are opened.

    The field of the text, the hub's file system, seconds a read may stall, what a document of a txt file is; of .bin
    files the id that ends a document, and whether an id has four bytes instead of two.
    """

    text_column: str
    filesystem: Any
    timeout: float
    txt_documents: str = "file"
    end: int = -1
    wide_ids: bool = False

    @classmethod
    def of(cls, config: DataConfig, filesystem: Any, encoder: Encoder | None = None) -> "Reader":
        """A reader as the flags say; without an encoder it cannot tell where a document of a .bin file ends."""
        end, wide = (encoder.eos, encoder.vocab_size > 1 << 16) if encoder is not None else (-1, False)
        return cls(config.text_column, filesystem, config.data_timeout, config.txt_documents, end, wide)

    def documents(self, shard: Shard) -> str:
        """What is a record of a line-wise shard: see `split_records`."""
        return self.txt_documents if shard.kind == "text" else "line"

    def records(self, shard: Shard, start: int = 0, stripe: int = 0, stripes: int = 1) -> Iterator[list[Record]]:
        """Records from number `start` on, of those whose number modulo `stripes` is `stripe`, some at a time.

        A damaged end is a last Record with a fault. Raises UsageError for a wrong field, OSError, DataError or the
        hub's errors.
        """
        if shard.kind == "ids":
            yield from bin_records(shard.path, self.wide_ids, self.end, start, stripe, stripes)
            return
        plain = shard.kind != "json" or is_array(shard)
        if plain and shard.kind != "text":
            ids = shard.kind == "parquet" and self._holds_ids(shard)
            yield from _chosen(self._tables(self._columns(shard)), start, stripe, stripes, ids)
            return
        if not shard.remote:
            # The machinery of `datasets` would take sixteen times as long to open a file (3.8 against 0.24 ms).
            for rows in self.lines(shard, (start, stripe, stripes)):
                yield [Record(row, plain, data, fault) for data, fault, row in rows]
            return
        lines = Records(
            cache_dir=_cache(), config_id="default", shard=shard, reader=self, part=(start, stripe, stripes)
        )
        for table in self._tables(_batches(lines)):
            values = zip(*(column.to_pylist() for column in table.columns), strict=True)
            yield [Record(row, plain, data, fault) for data, fault, row in values]

    def lines(self, shard: Shard, part: tuple[int, int, int]) -> Iterator[list[Row]]:
        """The lines (paragraphs, texts) of a part of a shard, some at a time; `part`: see `RecordsConfig`."""
        (start, stripe, stripes), row = part, 0
        try:
            with open_shard(shard, self.filesystem, self.timeout) as file:
                for rows in split_records(file, self.documents(shard)):
                    # Every lane reads the whole shard: what is not its own costs no more than the cutting.
                    first = max(row, start)
                    first += (stripe - first) % stripes
                    yield [(*rows[index - row], index) for index in range(first, row + len(rows), stripes)]
                    row += len(rows)
        except Exception as error:
            if not is_damage(error):
                raise
            yield [(None, f"{DAMAGED}: {error}", row)]

    def _tables(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The tables, and a row that says so where the rest is damaged."""
        row = 0
        try:
            for table in tables:
                row += len(table)
                yield table
        except Exception as error:
            if not is_damage(error):
                raise
            yield _table([(None, f"{DAMAGED}: {error}", row)])

    def _columns(self, shard: Shard) -> Iterator[pa.Table]:
        """The text column of a parquet file or of a JSON array."""
        files, first = {"train": [shard.path]}, 0
        builder: datasets.DatasetBuilder
        if shard.kind == "parquet":
            self._check_column(shard, pq.read_schema(shard.path).names)
            columns = [self.text_column]
            builder = Parquet(cache_dir=_cache(), config_id="default", data_files=files, columns=columns)
        else:
            # A byte order mark in front of the array is passed over.
            builder = Json(cache_dir=_cache(), config_id="default", data_files=files, encoding="utf-8-sig")
        for table in _batches(builder):
            self._check_column(shard, table.column_names)
            text = _ids_as_bytes(table.column(self.text_column))
            if text.type not in (pa.string(), pa.large_string(), pa.string_view(), pa.large_binary()):
                raise UsageError(f"field {self.text_column!r} of {shard.name} holds {text.type}, not text or ids")
            rows = pa.array(range(first, first + len(text)), pa.int64())
            first += len(text)
            yield pa.table([text.cast(pa.large_binary()), pa.nulls(len(text), pa.string()), rows], schema=_SCHEMA)

    def _holds_ids(self, shard: Shard) -> bool:
        try:
            return holds_ids(shard.path, self.text_column)
        except pa.ArrowInvalid:  # damaged, as reading it will say
            return False

    def _check_column(self, shard: Shard, names: list[str]) -> None:
        if self.text_column not in names:
            raise UsageError(
                f"{shard.name} has no field {self.text_column!r} but {', '.join(names)}: "
                "name the one that holds the text with --text_column"
            )


def _cache() -> str:
    # Streaming keeps nothing there but a lock.
    return str(cache_folder() / "datasets")


def _batches(builder: datasets.DatasetBuilder) -> Iterator[pa.Table]:
    dataset = builder.as_streaming_dataset(split="train").with_format("arrow")
    # Unlike plain iteration, `iter` does not divide the shard among the workers of a DataLoader once more.
    yield from dataset.iter(batch_size=_ROWS)


def _ids_as_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of integers as the bytes of uint32; any other column as it is."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column
    rows = (None if ids is None else np.asarray(ids, dtype="<u4").tobytes() for ids in column.to_pylist())
    return pa.chunked_array([pa.array(rows, pa.large_binary())])


def _chosen(tables: Iterator[pa.Table], start: int, stripe: int, stripes: int, ids: bool) -> Iterator[list[Record]]:
    """The records of a stripe, of columns whose rows all have been read."""
    row = 0
    for table in tables:
        wanted = [index for index in range((stripe - row) % stripes, len(table), stripes) if row + index >= start]
        row += len(table)
        chosen = table if len(wanted) == len(table) else table.take(wanted)
        rows = zip(*(column.to_pylist() for column in chosen.columns), strict=True)
        yield [Record(number, True, data, fault, ids and fault is None) for data, fault, number in rows]


def _table(rows: list[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table([list(column) for column in columns], schema=_SCHEMA)


@dataclass
class RecordsConfig(datasets.BuilderConfig):
    """One shard and how it is opened, and its records wanted: from `part[0]` on, stripe `part[1]` of `part[2]`."""

    shard: Shard | None = None
    reader: Reader | None = None
    part: tuple[int, int, int] = (0, 0, 1)


class Records(datasets.ArrowBasedBuilder):
    """Lines, paragraphs or whole texts as bytes, with the number of each in its shard."""

    BUILDER_CONFIG_CLASS = RecordsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(_SCHEMA))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", gen_kwargs={"shards": [self.config.shard]})]

    def _generate_tables(self, shards: list[Shard]) -> Iterator[tuple[Key, pa.Table]]:
        for shard in shards:
            for number, rows in enumerate(self.config.reader.lines(shard, self.config.part)):
                yield Key(0, number), _table(rows)
