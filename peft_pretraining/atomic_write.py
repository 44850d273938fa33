"""Write aside, then replace: a reader finds the old file or the new one, never half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def aside(path: Path) -> Path:
    """Where a file or folder is written before it takes its place; hidden, and on the same file system."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free path beside `path` for the body to write a file or a folder to, which then becomes `path`.

    A failure of the body leaves `path` as it was, and nothing beside it. One writer at a time: hold a lock where there
    may be others. A folder only takes a place that is free or an empty folder. Raises OSError.
    """
    partial = aside(path)
    remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file. Raises OSError."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
