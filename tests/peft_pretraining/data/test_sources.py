"""Which files a corpus is made of, and one clear message where there are none."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loguru import logger

from peft_pretraining.data import DataConfig
from peft_pretraining.data.faults import DataError
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
        ("a.jsonl", b'{"content": "words"}\n', "no field 'text' but content: .*--text_column"),
        ("a.json.gz", TEXT, "damaged|gzip"),
        ("a.json.gz", gzip.compress(TEXT, mtime=0)[:40], "damaged|end-of-stream"),
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


def test_files_without_a_document_are_left_out_and_named_once(tmp_path: Path, log: list[str]) -> None:
    fill(tmp_path, "b.jsonl", ".hidden.jsonl", "__pycache__/a.jsonl", ".git/a.json", "runs/one/notes.jsonl")
    (tmp_path / "runs/one/run.json").write_text("{}")
    (tmp_path / "a.jsonl").write_bytes(b"oops\n")
    (tmp_path / "c.jsonl").write_bytes(b"")
    (tmp_path / "metadata.json").write_text('{"name": "books", "license": "MIT"}')
    (tmp_path / "list.json").write_text('[{"name": "books"}]')
    (tmp_path / "other.parquet").write_bytes(parquet({"title": ["a"]}))
    assert [shard.name for shard in find_corpus(DataConfig(dataset=str(tmp_path))).train] == ["b.jsonl"]
    (message,) = [line for line in log if "left out" in line]
    assert "5 files hold no document" in message
    for name in ("a.jsonl", "c.jsonl", "metadata.json", "list.json", "other.parquet"):
        assert name in message


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_validation_files_without_a_document_are_one_message(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, "train.jsonl")
    (tmp_path / "validation.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match="no document to validate on .*validation.jsonl"):
        find_corpus(DataConfig(dataset=str(tmp_path)))


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["how-to-train-a-model.txt", "a.txt", "b.txt"], ["a.txt", "b.txt", "how-to-train-a-model.txt"], []),
        (["a.jsonl", "my-dev-diary.jsonl"], ["a.jsonl", "my-dev-diary.jsonl"], []),
        (["a/train.jsonl", "a/dev.jsonl", "a/rest.jsonl"], ["a/train.jsonl"], ["a/dev.jsonl"]),
        (["a.jsonl", "valid.jsonl", "test.jsonl"], ["a.jsonl"], ["valid.jsonl"]),
        (["a.jsonl", "test.jsonl"], ["a.jsonl"], []),
        (["train_dev.jsonl", "train.jsonl"], ["train.jsonl"], []),
        (["train_dev.jsonl", "a.jsonl"], ["a.jsonl", "train_dev.jsonl"], []),
        (["dev/train-00000.jsonl", "train/a.jsonl"], ["train/a.jsonl"], []),
        (["books.train.valid.jsonl", "train.jsonl"], ["train.jsonl"], []),
        (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], ["wiki.train.txt"], ["wiki.valid.txt"]),
        (["ways-to-train.txt", "a.txt"], ["a.txt", "ways-to-train.txt"], []),
        (["x-train-00000-of-00002.jsonl", "b.jsonl"], ["x-train-00000-of-00002.jsonl"], []),
        (["train-00000-of-00001-9f3a2b1c.parquet", "test-0.parquet"], ["train-00000-of-00001-9f3a2b1c.parquet"], []),
        (["c4-train.0.json.gz", "c4-validation.0.json.gz"], ["c4-train.0.json.gz"], ["c4-validation.0.json.gz"]),
    ],
)
def test_only_the_conventions_of_c4_and_hugging_face_name_parts(
    tmp_path: Path, names: list[str], train: list[str], validation: list[str], log: list[str]
) -> None:
    fill(tmp_path, *names)
    assert found(tmp_path) == (train, validation)
    left_out = sorted({*names} - {*train, *validation})
    assert [name for name in left_out if any(name in line for line in log)] == left_out


def test_a_file_that_is_named_is_trained_on_whatever_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "train_dev.jsonl", "test.jsonl", "dev.jsonl")
    for name in ("train_dev.jsonl", "test.jsonl", "dev.jsonl"):
        assert found(tmp_path / name) == ([name], [])


def test_a_folder_of_test_files_alone_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "test.jsonl", "eval/a.jsonl")
    with pytest.raises(UsageError, match="no file to train on, .*test.jsonl"):
        find_corpus(DataConfig(dataset=str(tmp_path)))


def test_other_files_to_validate_on(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "data/a.jsonl",
        "data/validation.jsonl",
        "own/b.jsonl",
        "own/c.txt",
        "split/train.txt",
        "split/val.txt",
    )
    for flag, names in (("own", ["b.jsonl", "c.txt"]), ("own/b.jsonl", ["b.jsonl"]), ("split", ["val.txt"])):
        corpus = find_corpus(DataConfig(dataset=str(tmp_path / "data"), eval_dataset=str(tmp_path / flag)))
        assert ([s.name for s in corpus.train], [s.name for s in corpus.validation]) == (["a.jsonl"], names)
    with pytest.raises(UsageError, match="--eval_dataset .*no such file"):
        find_corpus(DataConfig(dataset=str(tmp_path / "data"), eval_dataset=str(tmp_path / "missing")))


def test_holding_nothing_out_needs_other_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    with pytest.raises(UsageError, match="--holdout 0: .*--eval_dataset"):
        find_corpus(DataConfig(dataset=str(tmp_path), holdout=0))


def parquet(columns: dict[str, list[str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO")
    yield lines
    logger.remove(sink)


def test_a_shard_that_vanishes_is_named(tmp_path: Path, tokenizer: str) -> None:
    folder = write_c4(tmp_path / "c4", shards=2, per_shard=10)
    data = open_data(dataset=str(folder), tokenizer=tokenizer, lanes=2)
    for shard in folder.glob("en/c4-train.00001*"):
        shard.unlink()
    with pytest.raises(DataError, match=r"c4-train.00001.* cannot be read: FileNotFoundError"):
        next(data)
