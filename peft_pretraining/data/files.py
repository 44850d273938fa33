"""Opens shards as streams of decompressed bytes that bear faults of the network."""

import gzip
import io
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from loguru import logger

from peft_pretraining.data.faults import DataError
from peft_pretraining.data.shards import Shard

_BUFFER = 1 << 20
# Bytes of one request to the hub: a smaller block starts sooner, a larger one asks less often.
_REMOTE_BLOCK = 2 << 20
_LONGEST_WAIT = 30.0


def is_transient(error: BaseException) -> bool:
    """Whether a remote read is worth repeating: refused for now, or the connection failed."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 500
        return status in (408, 425, 429) or status >= 500
    return isinstance(error, ConnectionError | TimeoutError) or _is_transport_error(error)


def _is_transport_error(error: BaseException) -> bool:
    names = {base.__name__ for base in type(error).__mro__}
    # The hub's client is httpx, httpx2 or requests, by its version: only the names of their errors agree.
    return bool(names & {"TransportError", "RequestException", "IncompleteRead", "ProtocolError"})


def with_retries(action: Callable[[], Any], what: str, timeout: float) -> Any:
    """The result of `action`, repeated with backoff and jitter while it fails for now.

    Raises DataError naming `what` once it has failed for `timeout` seconds; lasting errors go through.
    """
    started, wait = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            elapsed = time.monotonic() - started
            pause = wait * random.uniform(0.5, 1.5)
            if elapsed + pause > timeout:
                raise DataError(
                    f"{what} gave no data for {elapsed:.0f} s (--data_timeout {timeout:g}): {error}"
                ) from error
            logger.warning("{}: {}; trying again in {:.1f} s, after {:.0f} s", what, error, pause, elapsed)
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)


class RetryingFile(io.RawIOBase):
    """A remote file read from front to back. A failed read is repeated at the same byte."""

    def __init__(self, shard: Shard, filesystem: Any, timeout: float) -> None:
        super().__init__()
        self._shard, self._filesystem, self._timeout = shard, filesystem, timeout
        self._position = 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = with_retries(lambda: self._read(len(buffer)), self._shard.name, self._timeout)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        count = min(count, self._shard.size - self._position)
        if count == 0:
            return b""
        try:
            if self._file is None:
                # A known size spares the question for it.
                self._file = self._filesystem.open(
                    self._shard.path, "rb", block_size=_REMOTE_BLOCK, size=self._shard.size
                )
                self._file.seek(self._position)
            data: bytes = self._file.read(count)
        except Exception:
            self._file = None
            raise
        if not data:
            self._file = None
            raise ConnectionError(f"no bytes at {self._position} of {self._shard.size}")
        return data


def open_shard(shard: Shard, filesystem: Any, timeout: float) -> Any:
    """A readable binary file of the decompressed bytes. Raises OSError, DataError or the hub's errors."""
    raw: Any
    if shard.remote:
        raw = io.BufferedReader(RetryingFile(shard, filesystem, timeout), _BUFFER)
    else:
        raw = open(shard.path, "rb", buffering=_BUFFER)  # noqa: SIM115
    if shard.compression is None:
        return raw
    if shard.compression == "gzip":
        return gzip.GzipFile(fileobj=raw)
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), shard.compression)


def is_damage(error: BaseException) -> bool:
    """Whether bytes were read but make no sense: a truncated or corrupt file, not one out of reach."""
    if isinstance(error, pa.ArrowInvalid | UnicodeDecodeError | EOFError | zlib.error):
        return True
    # The decompressors report corruption as an OSError that no system call made.
    return isinstance(error, OSError) and error.errno is None and not is_transient(error)
