"""Damaged data costs the damaged part only, is counted, and is met in the same way after a resume."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_pretraining.data.lines import MAX_RECORD_BYTES
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import Ranks, documents, lines, open_data, texts_of, write_c4

GOOD = documents(240, seed=1)


def bad_lines() -> bytes:
    """The records of GOOD with lines among them that hold no document."""
    bad = [
        b"not json",
        b'{"text": "cut off',
        b"[1, 2]",
        b'{"text": 5}',
        b'{"url": "no text"}',
        b'{"text": "   "}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5000 + b"}",
        b'{"text": "' + b"x" * (MAX_RECORD_BYTES + 1) + b'"}',
        b"",
    ]
    good = lines(GOOD).splitlines()
    mixed = [line for index, line in enumerate(good) for line in (bad[index % len(bad)], line)]
    del mixed[2 * len(bad) :: 2]  # every bad line once
    return b"\n".join(mixed) + b"\n"


def read_all(folder: Path, tokenizer: str, **flags: Any) -> tuple[set[str], dict[str, int]]:
    """(first words of all documents of one pass and a little more, the counters)."""
    data = open_data(dataset=str(folder), tokenizer=tokenizer, lanes=1, global_batch=8, **flags)
    found: set[str] = set()
    while data.state_dict()["cursors"].get("0", {"epoch": 0})["epoch"] == 0:
        found |= {text.split()[0] for text in texts_of(data, 1)}
    return found, data.counters


@pytest.fixture
def validated(tmp_path: Path) -> Path:
    """A folder with a validation file, so that no training document is held out."""
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(20, seed=5)))
    return tmp_path


@pytest.fixture
def c4_copy(tmp_path: Path) -> Path:
    return write_c4(tmp_path / "c4", shards=3, per_shard=800)


def names(texts: list[str]) -> set[str]:
    return {text.split()[0] for text in texts}


def test_bad_lines_cost_only_themselves_and_are_counted(validated: Path, tokenizer: str) -> None:
    (validated / "train.jsonl").write_bytes(bad_lines())
    found, counters = read_all(validated, tokenizer)
    assert found == names(GOOD)
    assert counters["skipped documents, too long"] in (1, 2)  # the second pass may be begun
    assert set(counters) == {
        f"skipped documents, {reason}" for reason in ("invalid JSON", "no text", "empty", "invalid UTF-8", "too long")
    }


@pytest.mark.parametrize("place", range(11))
def test_strict_data_stops_at_each_of_them(validated: Path, tokenizer: str, place: int) -> None:
    records = bad_lines().split(b"\n")
    (validated / "train.jsonl").write_bytes(b"\n".join([records[1], records[2 * place], b""]))
    data = open_data(dataset=str(validated), tokenizer=tokenizer, strict_data=True)
    with pytest.raises(UsageError, match="--strict_data: record 2 of .*train.jsonl"):
        next(data)


def truncate(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flip(data: bytes) -> bytes:
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


def shuffled_block(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\0\xff" * 40 + data[len(data) // 2 :]


@pytest.mark.parametrize("damage", [truncate, flip, shuffled_block])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_costs_its_end_and_is_named(
    c4_copy: Path, tokenizer: str, damage: Callable[[bytes], bytes], workers: int
) -> None:
    shard = sorted(c4_copy.glob("en/c4-train.*"))[1]
    shard.write_bytes(damage(shard.read_bytes()))
    flags = {"dataset": str(c4_copy), "tokenizer": tokenizer, "lanes": 2, "global_batch": 64, "batch_size": 64}
    run = Ranks(workers=workers, **flags)
    digests = run.digests(40)  # 2560 rows, of 2400 documents
    assert run.ranks[0].counters["damaged shards"] == 1
    run.close()
    chain, seen = Ranks(**flags), []
    for updates in (13, 10, 1, 16):
        seen += chain.digests(updates)
        chain = Ranks(state=chain.state(), **flags)
    assert seen == digests
    assert chain.ranks[0].counters["damaged shards"] == 1


def test_strict_data_stops_at_a_damaged_shard(c4_copy: Path, tokenizer: str) -> None:
    for shard in c4_copy.glob("en/c4-train.*"):
        shard.write_bytes(truncate(shard.read_bytes()))
    run = Ranks(dataset=str(c4_copy), tokenizer=tokenizer, lanes=2, workers=1, strict_data=True)
    with pytest.raises(UsageError, match=r"--strict_data.*damaged"):
        run.digests(800)


def test_counts_are_the_same_after_resumes(validated: Path, tokenizer: str) -> None:
    good = lines(documents(400, seed=3)).splitlines()
    mixed = [b"oops" if index % 10 == 0 else line for index, line in enumerate(good)]
    (validated / "train.jsonl").write_bytes(b"\n".join(mixed))
    flags = {"dataset": str(validated), "tokenizer": tokenizer, "lanes": 2}
    whole = Ranks(**flags)
    whole.digests(30)
    chain = Ranks(**flags)
    for updates in (1, 4, 0, 10, 15):
        chain.digests(updates)
        chain = Ranks(state=chain.state(), **flags)
    chain.digests(1)
    whole.digests(1)
    assert chain.ranks[0].counters == whole.ranks[0].counters


@pytest.mark.parametrize(
    "ending", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".parquet", ".array.json"]
)
def test_every_format_gives_the_same_documents(validated: Path, tokenizer: str, ending: str) -> None:
    plain = "\n".join(GOOD).encode() if ".txt" in ending else lines(GOOD)
    if ending == ".array.json":
        plain = json.dumps([{"text": text, "more": [1, 2]} for text in GOOD], indent=1).encode()
    file = validated / f"train{ending}"
    flags = {"txt_documents": "line"} if ".txt" in ending else {}
    if ending == ".parquet":
        pq.write_table(pa.table({"n": range(len(GOOD)), "text": GOOD}), file, row_group_size=50)
    elif ending.endswith(".gz"):
        file.write_bytes(gzip.compress(plain))
    elif ending.endswith(".zst"):
        file.write_bytes(pa.compress(plain, "zstd", asbytes=True))
    else:
        file.write_bytes(plain)
    found, counters = read_all(validated, tokenizer, **flags)
    assert found == names(GOOD)
    assert counters == {}


def test_paragraphs_of_prose_are_documents(validated: Path, tokenizer: str) -> None:
    (validated / "train.txt").write_bytes("\r\n\r\n".join(f"{text}\r\nmore" for text in GOOD).encode())
    data = open_data(dataset=str(validated), tokenizer=tokenizer, max_length=256, txt_documents="paragraph")
    assert all(text.startswith("doc") and text.endswith(".\nmore") for text in texts_of(data, 20))
