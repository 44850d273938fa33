"""What commands have in common: log lines, and the end of a table whose reader has left."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
