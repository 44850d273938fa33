"""From the bytes of a record to the text of a document, or to the reason why there is none."""

import json

import numpy as np
from loguru import logger

from peft_pretraining.data.faults import DAMAGED, EMPTY, INVALID_JSON, INVALID_UTF8, NO_TEXT, NOT_TEXT, Skipped
from peft_pretraining.data.holdout import Document, is_held_out
from peft_pretraining.data.lines import Record
from peft_pretraining.data.shards import Shard
from peft_pretraining.errors import UsageError

__all__ = ["DocumentParser", "is_held_out"]


class DocumentParser:
    """Reads documents from records and counts those it must pass over; under `strict` the first one stops."""

    def __init__(self, text_column: str, strict: bool) -> None:
        self._text_column, self._strict = text_column, strict

    def text(self, shard: Shard, record: Record, skipped: Skipped) -> Document | None:
        """The document of a record; None for a blank line or a fault. Raises UsageError under `strict`."""
        fault = record.fault
        if fault is None:
            text, fault = self._parse(record)
            if fault is None:
                return text
        if self._strict:
            raise UsageError(
                f"--strict_data: record {record.row + 1} of {shard.path}: {fault}; "
                "repair the file, or leave the flag out to skip such records"
            )
        if not fault.startswith(DAMAGED):
            skipped.documents[fault] += 1
        elif shard.name not in skipped.shards:
            skipped.shards[shard.name] = fault
            logger.warning("{}: {}; the rest of it is skipped", shard.name, fault)
        return None

    def _parse(self, record: Record) -> tuple[Document | None, str | None]:
        """(text, None), (None, None) for a blank line, or (None, fault)."""
        if record.data is None:
            return None, NO_TEXT
        if record.ids:
            return (np.frombuffer(record.data, dtype="<u4"), None) if record.data else (None, EMPTY)
        try:
            text = record.data.decode().removeprefix("\ufeff")
            if record.plain and "\0" in text:
                return None, NOT_TEXT
            if record.plain or not text.strip():
                return (text, None) if text.strip() else (None, None)
            return self._field(json.loads(text))
        except UnicodeDecodeError:
            return None, INVALID_UTF8
        except (ValueError, RecursionError):
            return None, INVALID_JSON

    def _field(self, value: object) -> tuple[str | None, str | None]:
        text = value.get(self._text_column) if isinstance(value, dict) else None
        if not isinstance(text, str):
            return None, NO_TEXT
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, escaped
            return None, INVALID_UTF8
        return (text, None) if text.strip() else (None, EMPTY)
