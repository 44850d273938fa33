"""Cuts files into records: lines, or the paragraphs of prose."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft_pretraining.data.faults import DAMAGED, TOO_LONG
from peft_pretraining.data.files import is_damage, open_shard
from peft_pretraining.data.shards import Shard

MAX_RECORD_BYTES = 8 << 20
_CHUNK = 64 << 10
_LINES = re.compile(rb"\n")
_BLANK_LINES = re.compile(rb"\n[ \t]*\n\s*")
_ARRAY = re.compile(rb"\s*\[\s*\{")


@dataclass(frozen=True)
class Record:
    """Record number `row` of a shard, counted from 0: its bytes, or None and what is wrong with it.

    `plain`: the bytes are the text itself, not a JSON object that holds it.
    """

    row: int
    plain: bool
    data: bytes | None
    fault: str | None = None


def split_records(file: Any, prose: bool) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """(record, None) or (None, fault) of `file`, a chunk's worth at a time; faults: too long, a damaged end."""
    pending: list[bytes] = []
    separator, oversized = None, False
    while True:
        try:
            chunk = file.read(_CHUNK)
        except Exception as error:
            if not is_damage(error):
                raise
            yield [(None, f"{DAMAGED}: {error}")]
            return
        pending.append(chunk)
        if chunk and b"\n" not in chunk:  # joining and splitting a long line for every chunk would be quadratic
            if sum(map(len, pending)) > MAX_RECORD_BYTES:
                pending, oversized = [], True
            yield []
            continue
        data = b"".join(pending).replace(b"\r\n", b"\n")
        if separator is None:
            separator = _BLANK_LINES if prose and _BLANK_LINES.search(data) else _LINES
        *records, tail = separator.split(data) if chunk else [data, b""]
        rows = [_row(record) for record in records]
        if oversized and rows:
            rows[0], oversized = (None, TOO_LONG), False
        pending, oversized = ([tail], oversized) if len(tail) <= MAX_RECORD_BYTES else ([], True)
        yield rows
        if not chunk:
            return


def _row(record: bytes) -> tuple[bytes | None, str | None]:
    return (record, None) if len(record) <= MAX_RECORD_BYTES else (None, TOO_LONG)


def is_array(shard: Shard) -> bool:
    """Whether a local JSON file is one array of objects instead of an object a line."""
    if shard.remote:
        return False
    try:
        with open_shard(shard, None, 0.0) as file:
            return _ARRAY.match(bytes(file.read(_CHUNK))) is not None
    except Exception as error:
        if not is_damage(error):
            raise
        return False
