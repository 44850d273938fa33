"""Cuts files into records: lines, paragraphs, or whole files."""

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
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
# A longer text is several documents: at most so much of one is in memory, and padded training sees rows of each part.
LONGEST_TEXT = 1 << 20


@dataclass(frozen=True)
class Record:
    """Record number `row` of a shard, counted from 0: its bytes, or None and what is wrong with it.

    `plain`: the bytes are the text itself, not a JSON object that holds it. `ids`: they are token ids, uint32.
    """

    row: int
    plain: bool
    data: bytes | None
    fault: str | None = None
    ids: bool = False


def split_records(file: Any, documents: str) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """(record, None) or (None, fault) of `file`, a chunk's worth at a time; faults: too long, a damaged end.

    documents: "line", "paragraph" (blank lines lie between them), or "file" (all of it, or parts of LONGEST_TEXT).
    """
    if documents == "file":
        yield from _parts(file)
        return
    pending: list[bytes] = []
    separator, oversized = (_BLANK_LINES if documents == "paragraph" else _LINES), False
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
        *records, tail = separator.split(data) if chunk else [data, b""]
        rows = [_row(record) for record in records]
        if oversized and rows:
            rows[0], oversized = (None, TOO_LONG), False
        pending, oversized = ([tail], oversized) if len(tail) <= MAX_RECORD_BYTES else ([], True)
        yield rows
        if not chunk:
            return


def _parts(file: Any) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """The whole file as one record, or parts of at most LONGEST_TEXT bytes that end with a paragraph or a line."""
    pending = bytearray()
    while True:
        try:
            chunk = file.read(_CHUNK)
        except Exception as error:
            if not is_damage(error):
                raise
            yield [(bytes(pending), None), (None, f"{DAMAGED}: {error}")]
            return
        pending += chunk
        rows: list[tuple[bytes | None, str | None]] = []
        while len(pending) > LONGEST_TEXT:
            end = _part_end(pending)
            rows.append((_unix(pending[:end]), None))
            del pending[:end]
        yield rows
        if not chunk:
            yield [(_unix(pending), None)]
            return


def _part_end(data: bytearray) -> int:
    """Where the first part of `data` ends: after a blank line, a line, a word, or a character."""
    for separator in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        found = data.rfind(separator, LONGEST_TEXT // 2, LONGEST_TEXT)
        if found > 0:
            return found + len(separator)
    end = LONGEST_TEXT
    while end > 1 and data[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


def _unix(data: bytearray) -> bytes:
    return bytes(data).replace(b"\r\n", b"\n")


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
