"""Reads shards record by record through Hugging Face `datasets` in streaming mode.

Line-wise files have a builder of their own. The json builder of `datasets` gives up a block of 10 MiB for one
bad line and all of it at a damaged byte; this one passes lines on as bytes, so that a bad one costs one document,
and reads the network so that a fault repeats a request and not the shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from peft_pretraining.data.cache import cache_folder
from peft_pretraining.data.faults import DAMAGED
from peft_pretraining.data.files import is_damage, open_shard
from peft_pretraining.data.lines import Record, is_array, split_records
from peft_pretraining.data.shards import Shard
from peft_pretraining.errors import UsageError

_ROWS = 256
_SCHEMA = pa.schema({"record": pa.large_binary(), "fault": pa.string()})


@dataclass(frozen=True)
class Reader:
    """How shards are opened: the field of the text, the hub's file system, seconds a read may stall."""

    text_column: str
    filesystem: Any
    timeout: float

    def records(self, shard: Shard, start: int = 0, stripe: int = 0, stripes: int = 1) -> Iterator[list[Record]]:
        """Records from number `start` on, of those whose number modulo `stripes` is `stripe`, some at a time.

        A damaged end is a last Record with a fault. Raises UsageError for a wrong field, OSError, DataError or the
        hub's errors.
        """
        row, plain = 0, shard.kind != "json" or is_array(shard)
        for table in self._tables(shard, plain):
            wanted = [index for index in range((stripe - row) % stripes, len(table), stripes) if row + index >= start]
            row += len(table)
            if not wanted:
                yield []
                continue
            chosen = table if len(wanted) == len(table) else table.take(wanted)
            columns = [column.to_pylist() for column in chosen.columns]
            first = row - len(table)
            yield [Record(first + index, plain, *values) for index, *values in zip(wanted, *columns, strict=True)]

    def _tables(self, shard: Shard, plain: bool) -> Iterator[pa.Table]:
        try:
            yield from self._columns(shard) if plain and shard.kind != "text" else self._lines(shard)
        except Exception as error:
            if not is_damage(error):
                raise
            yield _table([(None, f"{DAMAGED}: {error}")])

    def _lines(self, shard: Shard) -> Iterator[pa.Table]:
        yield from _batches(Records(cache_dir=_cache(), config_id="default", shard=shard, reader=self))

    def _columns(self, shard: Shard) -> Iterator[pa.Table]:
        """The text column of a parquet file or of a JSON array."""
        files = {"train": [shard.path]}
        builder: datasets.DatasetBuilder
        if shard.kind == "parquet":
            self._check_column(shard, pq.read_schema(shard.path).names)
            columns = [self.text_column]
            builder = Parquet(cache_dir=_cache(), config_id="default", data_files=files, columns=columns)
        else:
            builder = Json(cache_dir=_cache(), config_id="default", data_files=files)
        for table in _batches(builder):
            self._check_column(shard, table.column_names)
            text = table.column(self.text_column)
            if text.type not in (pa.string(), pa.large_string(), pa.string_view()):
                raise UsageError(f"field {self.text_column!r} of {shard.name} holds {text.type}, not text")
            yield pa.table([text.cast(pa.large_binary()), pa.nulls(len(text), pa.string())], schema=_SCHEMA)

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


def _table(rows: list[tuple[bytes | None, str | None]]) -> pa.Table:
    return pa.table([[row[0] for row in rows], [row[1] for row in rows]], schema=_SCHEMA)


@dataclass
class RecordsConfig(datasets.BuilderConfig):
    """One shard and how it is opened."""

    shard: Shard | None = None
    reader: Reader | None = None


class Records(datasets.ArrowBasedBuilder):
    """Lines, or paragraphs of a text file that has blank lines, as bytes."""

    BUILDER_CONFIG_CLASS = RecordsConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(_SCHEMA))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", gen_kwargs={"shards": [self.config.shard]})]

    def _generate_tables(self, shards: list[Shard]) -> Iterator[tuple[Key, pa.Table]]:
        reader = self.config.reader
        for shard in shards:
            with open_shard(shard, reader.filesystem, reader.timeout) as file:
                for number, rows in enumerate(split_records(file, shard.kind == "text")):
                    yield Key(0, number), _table(rows)
