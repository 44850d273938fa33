"""Records are what lies between line ends, wherever chunks end, and no bytes do harm."""

import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_pretraining.data import lines
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.lines import Record, split_records
from peft_pretraining.data.shards import Shard

SHARD = Shard("a.jsonl", "a.jsonl", 1)
PIECES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b" ", b"\t", b"a", b"bc", b"\xff", b"{}", b'{"text": "x"}', b"\0"])
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_CHUNK", 7)
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", 40)


def records(data: bytes, documents: str) -> list[tuple[bytes | None, str | None]]:
    return [row for rows in split_records(io.BytesIO(data), documents) for row in rows]


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_lines_do_not_depend_on_chunks(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    expected = [
        (line, None) if len(line) <= 40 else (None, "too long") for line in data.replace(b"\r\n", b"\n").split(b"\n")
    ]
    assert records(data, "line") == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab .", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=9), st.data())
def test_paragraphs_do_not_depend_on_chunks(paragraphs: list[str], data: st.DataObject) -> None:
    blank = [data.draw(st.sampled_from(["\n\n", "\n \n", "\r\n\r\n", "\n\n\n"])) for _ in paragraphs]
    text = "".join(part for pair in zip(paragraphs, blank, strict=True) for part in pair)
    found = [record.decode().strip() for record, _ in records(text.encode(), "paragraph") if record]
    assert [record for record in found if record] == [paragraph.strip() for paragraph in paragraphs]


@settings(max_examples=200, deadline=None)
@given(st.text("a\u00e9\u20ac\n ", max_size=300), st.integers(20, 60))
def test_a_file_is_a_document_and_a_long_one_is_cut_between_characters(text: str, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LONGEST_TEXT", limit)
        parts = [record for record, _ in records(text.encode(), "file") if record is not None]
    assert b"".join(parts) == text.encode()
    assert all(len(part) <= limit and part.decode() is not None for part in parts)
    assert len(parts) <= 1 + 2 * len(text.encode()) // (limit - 4)
    if len(text.encode()) <= limit:
        assert [part for part in parts if part] == [text.encode()] * bool(text)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda values: st.lists(values) | st.dictionaries(st.sampled_from(["text", "url", ""]), values),
    ).map(lambda value: json.dumps(value).encode()),
    st.booleans(),
)
def test_any_bytes_are_a_document_or_counted(data: bytes, plain: bool) -> None:
    skipped = Skipped()
    text = DocumentParser("text", strict=False).text(SHARD, Record(0, plain, data), skipped)
    blank = not re.sub(rb"\s", b"", data)
    assert (text is not None) + skipped.documents.total() == 1 or blank or not data.decode(errors="replace").strip()
    if text is not None:
        assert text.strip() and text.encode()
