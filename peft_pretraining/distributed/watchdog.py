"""Ends a job whose processes wait for one that is dead or stands still, and says which one."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch.distributed as dist
from loguru import logger

from peft_pretraining.errors import RunFailed

_SIGN_OF_LIFE_SECONDS = 1.0


class PeerLost(RunFailed):
    """A collective failed because other processes are gone; the message names their ranks."""


class Watchdog:
    """A thread that posts this process's heartbeat and progress, and reads the others' when nothing moves.

    Collectives give no hint at who is missing (NCCL hangs, gloo names a socket), and torchrun sees only
    processes that have ended. When no process has arrived anywhere for `timeout` seconds, each one logs the
    ranks that stand still and exits with status 1. Long work between collectives (`working`) counts as arriving.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._arrivals = 0
        self._work: list[str] = []
        self._work_said = 0.0
        self._since = time.monotonic()
        self._seen: list[int] | None = None
        self._ended = threading.Event()
        self._beat = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def arrive(self) -> None:
        """Called wherever this process goes on: before a collective, after a file."""
        self._arrivals += 1
        self._seen = None
        self._since = time.monotonic()

    @contextmanager
    def working(self, work: str) -> Iterator[None]:
        """While the body runs, this process goes on, for minutes if need be; the log says so once in `timeout`.

        work: as in "rank 0 still ...": "verifies the checkpoint". What cannot end by itself needs a limit of its own.
        """
        self.arrive()
        self._work.append(work)
        self._work_said = time.monotonic()
        try:
            yield
        finally:
            self._work.remove(work)
            self.arrive()

    def _go_on_working(self) -> None:
        if not (work := self._work[-1:]):
            return
        self.arrive()
        if time.monotonic() - self._work_said >= self._timeout:
            self._work_said = time.monotonic()
            logger.warning("rank {} still {} after {:g} s; the others wait", self._rank, work[0], self._timeout)

    def __enter__(self) -> Self:
        self._post()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        lost = self._who_is_lost() if isinstance(error, RuntimeError) else None
        self._ended.set()
        self._thread.join(timeout=2 * _SIGN_OF_LIFE_SECONDS)
        if lost is not None:
            raise PeerLost(f"rank {self._rank} cannot go on: {lost}") from error

    def _post(self) -> None:
        self._beat += 1
        self._store.set(str(self._rank), f"{self._beat} {self._arrivals}")

    def _read(self) -> list[tuple[int, int]]:
        """Heartbeat and arrivals by rank; (0, 0) for a process that has not come up."""
        posted: list[tuple[int, int]] = []
        for rank in range(self._world_size):
            text = self._store.get(str(rank)) if self._store.check([str(rank)]) else b"0 0"
            beat, arrivals = text.split()
            posted.append((int(beat), int(arrivals)))
        return posted

    def _watch(self) -> None:
        pause = min(_SIGN_OF_LIFE_SECONDS, self._timeout / 4)
        while not self._ended.wait(pause):
            try:
                self._go_on_working()
                self._post()
                if self._nothing_moves():
                    self._end(f"{self._missing(f'{self._timeout:g} s')}; the job ends (--dist_timeout)")
            except (RuntimeError, OSError):
                # The store lives in torchrun or in rank 0. Without them this process would be an orphan that
                # holds its GPU and the run folder. At the end of a run others may leave a moment earlier.
                if not self._ended.wait(5 * _SIGN_OF_LIFE_SECONDS):
                    self._end("torchrun, or rank 0, has ended without a word; this process ends too")

    def _end(self, message: str) -> None:
        logger.error("rank {}: {}", self._rank, message)
        os._exit(1)

    def _nothing_moves(self) -> bool:
        waited = time.monotonic() - self._since
        if waited < self._timeout / 2:
            return False
        arrivals = [number for _, number in self._read()]
        if self._seen is None:
            self._seen = arrivals
        elif arrivals != self._seen:
            # Somebody works, as rank 0 does on a large checkpoint: wait on. Counting this as an arrival of
            # our own would let two waiting processes keep each other up for ever.
            self._seen, self._since = arrivals, time.monotonic()
            return False
        return waited >= self._timeout

    def _missing(self, how_long: str) -> str:
        if silent := self._silent():
            return f"rank {_names(silent)} gives no sign of life: ended, stopped or unreachable"
        arrivals = [number for _, number in self._read()]
        behind = [rank for rank, number in enumerate(arrivals) if number < max(arrivals)]
        if behind:
            return f"rank {_names(behind)} lives but has not gone on for {how_long} while the others wait"
        return f"all {self._world_size} ranks wait for one another for {how_long}"

    def _silent(self) -> list[int]:
        """Ranks, other than this one, whose heartbeat stands still."""
        before = self._read()
        time.sleep(2.5 * _SIGN_OF_LIFE_SECONDS)
        after = self._read()
        return [rank for rank in range(self._world_size) if rank != self._rank and before[rank][0] == after[rank][0]]

    def _who_is_lost(self) -> str | None:
        """After a failure here: the ranks that have ended, if any, which is then its cause."""
        try:
            silent = self._silent()
        except (RuntimeError, OSError):
            return "the store that all share is gone, with the torchrun or the rank 0 that held it"
        return f"rank {_names(silent)} has ended or cannot be reached" if silent else None


def _names(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
