"""Signals that ask a run to stop: finish the update, save, exit with a status that says why."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

from loguru import logger

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again to go on
EXIT_INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Ctrl-C in a terminal reaches the processes directly and a moment later again through torchrun.
_SAME_KEYSTROKE_SECONDS = 2.0


class StopSignals:
    """While entered, SIGTERM, SIGUSR1 and Ctrl-C set `requested`; a second Ctrl-C ends the process at once.

    Data workers forked inside ignore these signals the first time: a scheduler signals every process of a
    job, and the run needs its workers for the update it is in.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._first: int | None = None
        self._when = 0.0
        self._previous: dict[int, object] = {}
        self._ignored_once = False

    @property
    def requested(self) -> bool:
        return self._first is not None

    @property
    def exit_status(self) -> int:
        return EXIT_INTERRUPTED if self._first == signal.SIGINT else EXIT_PREEMPTED

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_worker(number)
        elif self._first is None:
            self._first, self._when = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # once: a launcher that ends a job tells every process
                logger.warning("{}: this update is finished and saved, then the run stops", signal.Signals(number).name)
        elif number == signal.SIGINT and time.monotonic() - self._when > _SAME_KEYSTROKE_SECONDS:
            logger.warning("second Ctrl-C: the run stops at once; nothing since the last checkpoint is kept")
            os._exit(EXIT_INTERRUPTED)

    def _handle_in_worker(self, number: int) -> None:
        if number == signal.SIGTERM and self._ignored_once:
            os._exit(0)
        self._ignored_once = self._ignored_once or number == signal.SIGTERM
