"""Cuts files into records: lines, or the paragraphs of prose."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft_pretraining.data.faults import DAMAGED, TOO_LONG
from peft_pretraining.data.files import is_damage, open_shard
from peft_pretraining.data.shards import Shard

MAX_RECORD_BYTES = 8 << 20
_CHUNK = 256 << 10
_LINES = re.compile(rb"\n")
_BLANK_LINES = re.compile(rb"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Record:
    """Record number `row` of a shard, counted from 0: its bytes, or None and what is wrong with it."""

    row: int
    data: bytes | None
    fault: str | None = None


def split_records(file: Any, prose: bool) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """(record, None) or (None, fault) of `file`, a chunk's worth at a time; faults: too long, a damaged end."""
    tail, separator, oversized = b"", None, False
    while True:
        try:
            chunk = file.read(_CHUNK)
        except Exception as error:
            if not is_damage(error):
                raise
            yield [(None, f"{DAMAGED}: {error}")]
            return
        data = (tail + chunk).replace(b"\r\n", b"\n")
        if separator is None:
            separator = _BLANK_LINES if prose and _BLANK_LINES.search(data) else _LINES
        *records, tail = separator.split(data) if chunk else [data, b""]
        rows: list[tuple[bytes | None, str | None]] = [(record, None) for record in records]
        if oversized and rows:
            rows[0], oversized = (None, TOO_LONG), False
        if len(tail) > MAX_RECORD_BYTES:
            tail, oversized = b"", True
        yield rows
        if not chunk:
            return


def is_array(shard: Shard) -> bool:
    """Whether a local .json file is one array instead of a record a line."""
    try:
        with open_shard(shard, None, 0.0) as file:
            return bytes(file.read(_CHUNK)).lstrip()[:1] == b"["
    except OSError as error:
        if not is_damage(error):
            raise
        return False
