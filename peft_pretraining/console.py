"""What commands have in common: log lines, the end of a table whose reader has left, and the end of a process."""

import atexit
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from loguru import logger
from tqdm import tqdm


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends quietly when what reads the output has read enough, as head does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def configure_logging(rank: int, processes: int) -> None:
    """Log lines go to stderr above the bar: all of rank 0's, warnings of the others with their rank."""
    logger.remove()
    origin = f"[rank {rank}] " if processes > 1 else ""
    logger.add(
        lambda line: tqdm.write(line, file=sys.stderr, end=""),
        level="INFO" if rank == 0 else "WARNING",
        format=f"<dim>{{time:HH:mm:ss}}</dim> <level>{{level: <7}}</level> {origin}{{message}}",
        colorize=sys.stderr.isatty(),
    )


def explain(message: str) -> None:
    """Hands a process's last word to the torchrun that started it, which prints it at the end of its traceback."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)


def leave(status: int) -> NoReturn:
    """Ends the process with `status` without taking the interpreter down, after all that was registered for the exit.

    A thread that is in native code then, as one that reads a shard, is ended by Python when it comes back. That goes
    through C++ that may not be left this way, which aborts the process: "terminate called without an active
    exception", SIGABRT, although everything is on the disk. Whatever has to be waited for is waited for before.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(status)
