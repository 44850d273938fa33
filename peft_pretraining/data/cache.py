"""The folder where prepared data is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """THRIFT_CACHE, or thrift-llama in the user's cache folder."""
    chosen = os.environ.get("THRIFT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thrift-llama"
