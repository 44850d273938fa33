"""File modes as the user's umask has them, whatever the library that wrote a file chose."""

import os
from pathlib import Path


def follow_umask(path: Path) -> None:
    """Gives a file, or a folder with all that is in it, the mode that a plain `open` or `mkdir` would have given.

    safetensors writes files, and `tempfile.mkdtemp` makes folders, that nobody but their owner may read.
    """
    umask = _umask()
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)


def _umask() -> int:
    try:
        # Reading it by setting it would change it for other threads for a moment.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration):
        value = os.umask(0o022)
        os.umask(value)
        return value
