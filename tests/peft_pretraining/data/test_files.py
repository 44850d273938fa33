"""Reading through failures: at the same byte, with a limit, and never for ever."""

import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from peft_pretraining.data.background import Background
from peft_pretraining.data.faults import DataError
from peft_pretraining.data.files import RetryingFile, with_retries
from peft_pretraining.data.shards import Shard


class FailingFiles:
    """A file system whose reads fail at every second call, some after moving the file's position."""

    def __init__(self, data: bytes) -> None:
        self.data, self.calls, self.opened = data, 0, 0

    def open(self, *_: Any, **__: Any) -> "FailingFiles":
        self.opened += 1
        self.file = io.BytesIO(self.data)
        return self

    def seek(self, position: int) -> None:
        self.file.seek(position)

    def read(self, count: int) -> bytes:
        self.calls += 1
        if self.calls % 2:
            self.file.read(count // 2)
            raise ConnectionResetError("gone")
        return self.file.read(min(count, 700))


def test_a_failed_read_is_repeated_at_the_same_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    files = FailingFiles(bytes(range(256)) * 20)
    file = io.BufferedReader(RetryingFile(Shard("hf://x", "x", len(files.data)), files, 60.0), 512)
    assert file.read() == files.data
    assert files.opened > 5


def test_retries_end_in_an_error_that_names_the_shard() -> None:
    def fails() -> None:
        raise ConnectionError("refused")

    started = time.monotonic()
    with pytest.raises(DataError, match=r"shard 7 gave no data .*--data_timeout 1.*refused"):
        with_retries(fails, "shard 7", 1.0)
    assert time.monotonic() - started < 2


def test_lasting_errors_are_not_retried() -> None:
    def missing() -> None:
        raise FileNotFoundError("no such shard")

    with pytest.raises(FileNotFoundError):
        with_retries(missing, "shard", 60.0)


def test_a_stalled_read_is_an_error_in_time() -> None:
    release = threading.Event()

    def stalls() -> Iterator[int]:
        yield 1
        release.wait(30)

    background = Background(stalls(), "shard 3", timeout=0.3)
    assert next(background) == 1
    with pytest.raises(DataError, match=r"shard 3 gave no data for 0.3 s \(--data_timeout\)"):
        next(background)
    release.set()


def test_items_and_errors_come_in_order_and_closing_ends_the_thread() -> None:
    def counts() -> Iterator[int]:
        yield from range(3)
        raise ValueError("end")

    background = Background(counts(), "x", timeout=5)
    assert [next(background) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="end"):
        next(background)
    endless = Background(iter(lambda: 1, 0), "endless", timeout=5)
    next(endless)
    endless.close()
    assert "read endless" not in {thread.name for thread in threading.enumerate()}
