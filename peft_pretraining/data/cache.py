"""The folder where prepared data is kept between runs."""

import os
import tempfile
from pathlib import Path

from peft_pretraining.errors import UsageError


def cache_folder() -> Path:
    """THRIFT_CACHE, or thrift-llama in the user's cache folder."""
    chosen = os.environ.get("THRIFT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thrift-llama"


def check_cache() -> None:
    """Raises UsageError, naming the folder and its variable, where nothing can be kept."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"the cache folder {folder} cannot be written: {error}; set the variable THRIFT_CACHE to a folder of "
            "yours with some space (200 MB for builtin data and validation sets)"
        ) from error
