"""Which files a corpus is made of, and one clear message where there are none."""

import gzip
import os
from pathlib import Path

import pytest

from peft_pretraining.data import DataConfig
from peft_pretraining.data.shards import local_corpus
from peft_pretraining.data.sources import find_corpus
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import documents, lines, open_data, write_c4

TEXT = lines(documents(5))


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(TEXT)
    return folder


def found(dataset: Path | str) -> tuple[list[str], list[str]]:
    corpus = local_corpus(str(dataset))
    return [shard.name for shard in corpus.train], [shard.name for shard in corpus.validation]


def test_the_english_part_of_a_copy_of_c4(tmp_path: Path) -> None:
    names = ("en/c4-train.0.json.gz", "en/c4-validation.0.json.gz", "realnewslike/c4-train.0.json.gz")
    assert found(fill(tmp_path, *names)) == (["c4-train.0.json.gz"], ["c4-validation.0.json.gz"])


def test_folders_and_words_in_names_make_the_validation_split(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.jsonl", "train/b.jsonl", "valid/a.jsonl", "test/a.jsonl", "README.md")
    assert found(tmp_path) == (["train/a.jsonl", "train/b.jsonl"], ["valid/a.jsonl"])


def test_without_such_words_all_files_are_trained_on_and_a_share_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, "b.txt", "a.parquet", "notes.csv")
    assert found(tmp_path) == (["a.parquet", "b.txt"], [])
    assert local_corpus(str(tmp_path)).hold_out


def test_one_file_and_a_glob(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.jsonl", "y/b.jsonl", "y/c.txt")
    assert found(tmp_path / "x/a.jsonl") == (["a.jsonl"], [])
    assert found(f"{tmp_path}/*/*.jsonl") == (["x/a.jsonl", "y/b.jsonl"], [])


def test_the_fingerprint_is_that_of_names_and_sizes_wherever_they_lie(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one", "a.jsonl", "b.jsonl"), fill(tmp_path / "two", "a.jsonl", "b.jsonl")
    assert local_corpus(str(one)).fingerprint == local_corpus(str(two)).fingerprint
    (two / "b.jsonl").write_bytes(TEXT[:-1])
    assert local_corpus(str(one)).fingerprint != local_corpus(str(two)).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "every file is empty"),
        ("a.jsonl", b"\n\n", "blank"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\xff\xd8" * 500, "invalid UTF-8"),
        ("a.json", b"just words\nand more\n", "invalid JSON"),
        ("a.jsonl", b'{"content": "words"}\n', "no text .--text_column text"),
        ("a.json.gz", TEXT, "damaged|gzip"),
        ("a.json.gz", gzip.compress(TEXT)[:40], "damaged|end-of-stream"),
        ("a.parquet", TEXT, "[Pp]arquet"),
        ("a.pdf", TEXT, "unknown ending"),
    ],
)
def test_a_file_without_text_is_one_message(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        find_corpus(DataConfig(dataset=str(tmp_path / name)))
    assert str(tmp_path / name) in str(error.value)


def test_nothing_there_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no data")
    for dataset, message in (
        (tmp_path, "holds no data"),
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path / "*.json", "no file matches"),
    ):
        with pytest.raises(UsageError, match=message):
            find_corpus(DataConfig(dataset=str(dataset)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_one_message(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(UsageError, match="permissions"):
        find_corpus(DataConfig(dataset=str(tmp_path)))


def test_a_good_shard_among_bad_ones_is_enough_to_start(tmp_path: Path) -> None:
    fill(tmp_path, "b.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"oops\n")
    (tmp_path / "c.jsonl").write_bytes(b"")
    assert [shard.name for shard in find_corpus(DataConfig(dataset=str(tmp_path))).train] == ["a.jsonl", "b.jsonl"]


def test_a_shard_that_vanishes_is_named(tmp_path: Path, tokenizer: str) -> None:
    folder = write_c4(tmp_path / "c4", shards=2, per_shard=10)
    data = open_data(dataset=str(folder), tokenizer=tokenizer, lanes=2)
    for shard in folder.glob("en/c4-train.00001*"):
        shard.unlink()
    with pytest.raises(RuntimeError, match=r"c4-train.00001.* cannot be read: FileNotFoundError"):
        next(data)
