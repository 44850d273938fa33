"""A run's folder: one run at a time, and checkpoints that are either whole and verified or not there."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.errors import UsageError

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
_CHECKPOINT = re.compile(r"model_(\d+)")
_PARTIAL = re.compile(r"\.model_\d+\.(partial|old)")
_BLOCK = 1 << 22


class DamagedCheckpoint(Exception):
    """A checkpoint folder that is not what was written; the message names the file."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes. Only the main process touches it, apart from the shards of a checkpoint."""

    path: Path

    def checkpoint(self, update: int) -> Path:
        return self.path / f"model_{update}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Update and folder of every finished checkpoint, newest first."""
        if not self.path.is_dir():
            return []
        found = [(match, entry) for entry in self.path.iterdir() if (match := _CHECKPOINT.fullmatch(entry.name))]
        return sorted(((int(match[1]), entry) for match, entry in found if entry.is_dir()), reverse=True)

    def last_good(self) -> str:
        """Says which checkpoint is the newest one."""
        newest = self.checkpoints()
        return f"The last good checkpoint is {newest[0][1]}" if newest else "There is no checkpoint yet"

    def sync_metrics(self) -> None:
        """Brings the metrics to the disk: a checkpoint must not outlive the lines before it."""
        metrics = self.path / METRICS
        if metrics.exists():
            _sync(metrics)

    def begin(self, update: int) -> Path:
        """An empty folder to write checkpoint `update` into; no reader takes it for a checkpoint."""
        partial = self.path / f".model_{update}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def publish(self, update: int, keep: int, on_file: Callable[[], None]) -> Path:
        """Turns the folder that `begin` gave into a checkpoint, at once or not at all; keeps the newest."""
        partial, final = self.path / f".model_{update}.partial", self.checkpoint(update)
        _write_manifest(partial, on_file)
        os.rename(partial, final)
        _sync(self.path)
        for _, old in self.checkpoints()[keep:]:
            self._delete(old)
        return final

    def set_aside_after(self, update: int) -> None:
        """Renames checkpoints newer than the one a run goes on from: it will write its own instead."""
        for later, path in self.checkpoints():
            if later > update:
                logger.warning("{} is newer than the update the run continues from; it is set aside", path)
                os.rename(path, _fresh(path.with_name(f"{path.name}.set_aside")))

    def remove_leftovers(self) -> None:
        """Deletes what an interrupted save or deletion left behind."""
        for entry in self.path.iterdir():
            if _PARTIAL.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)

    def _delete(self, checkpoint: Path) -> None:
        hidden = _fresh(self.path / f".{checkpoint.name}.old")
        os.rename(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint (also one that was set aside or renamed), not a run folder."""
    return _CHECKPOINT.fullmatch(path.name) is not None or (path / MANIFEST).exists()


def folder_of(source: Path) -> Path:
    """The run folder of a checkpoint; a run folder itself as it is."""
    return source.parent if is_checkpoint(source) else source


def choose_folder(config: CheckpointConfig, name: str | None) -> Path:
    """The run folder that the flags ask for; without --save_dir, a run is continued where it is."""
    if config.save_dir is not None:
        return Path(config.save_dir)
    if config.continue_from is not None:
        source = Path(config.continue_from)
        return folder_of(source)
    return Path("runs") / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))


@contextmanager
def locked(path: Path, fresh: bool) -> Iterator[RunFolder]:
    """Creates and locks the run folder. Raises UsageError if it is in use, holds another run or is not
    writable.

    A POSIX record lock, unlike flock, is not inherited by forked data workers, which may outlive a killed run
    for some seconds.
    """
    folder = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"--save_dir {path}: the run folder cannot be written ({error.strerror}): choose another one"
        ) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise UsageError(f"--save_dir {path}: this file system has no locks ({error.strerror})") from error
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UsageError(
                f"--save_dir {path}: another run writes here ({owner}): stop it or choose another folder"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        metrics = path / METRICS
        if fresh and (folder.checkpoints() or (metrics.exists() and metrics.stat().st_size)):
            raise UsageError(
                f"--save_dir {path} holds a run already: add --continue_from auto, or choose another folder"
            )
        folder.remove_leftovers()
        yield folder


def find_checkpoint(config: CheckpointConfig, folder: RunFolder) -> Path | None:
    """The verified checkpoint to continue from; None to start afresh. Raises UsageError if none will do."""
    if config.continue_from is None:
        return None
    if config.continue_from == "auto":
        return _newest_valid(folder)
    source = Path(config.continue_from)
    if not source.is_dir():
        raise UsageError(f"--continue_from {source}: there is no such folder")
    if is_checkpoint(source):
        try:
            verify(source)
        except DamagedCheckpoint as error:
            raise UsageError(
                f"--continue_from {source}: refused, {error}; give the run folder to use its newest valid one"
            ) from error
        return source
    found = _newest_valid(RunFolder(source))
    if found is None:
        raise UsageError(f"--continue_from {source}: there is no checkpoint (model_*) in this folder")
    return found


def _newest_valid(folder: RunFolder) -> Path | None:
    candidates = folder.checkpoints()
    for _, path in candidates:
        try:
            verify(path)
        except DamagedCheckpoint as error:
            logger.error("checkpoint {} is refused: {}; the one before it is tried", path, error)
        else:
            return path
    if candidates:
        raise UsageError(f"--continue_from: no valid checkpoint is left in {folder.path}: delete it to start again")
    return None


def verify(checkpoint: Path) -> None:
    """Compares a checkpoint with its manifest. Raises DamagedCheckpoint naming a file that differs."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"its {MANIFEST} cannot be read ({type(error).__name__})") from error
    present = {str(path.relative_to(checkpoint)): path for path in _files(checkpoint)}
    for name, (size, _) in listed.items():
        if name not in present:
            raise DamagedCheckpoint(f"{name} is missing")
        if present[name].stat().st_size != size:
            raise DamagedCheckpoint(f"{name} has {present[name].stat().st_size} bytes instead of {size}")
    for name in present.keys() - listed.keys():
        # Readers take every such file of the folder, so a stray one would become part of the state.
        if name.endswith((".safetensors", ".json")):
            raise DamagedCheckpoint(f"{name} is not in the manifest")
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(listed, pool.map(lambda name: _sha256(present[name]), listed), strict=True))
    for name, (_, digest) in listed.items():
        if digests[name] != digest:
            raise DamagedCheckpoint(f"the checksum of {name} differs")


def _write_manifest(checkpoint: Path, on_file: Callable[[], None]) -> None:
    paths = sorted(_files(checkpoint))
    entries = {}
    with ThreadPoolExecutor() as pool:
        for path, digest in zip(paths, pool.map(_sync_and_hash, paths), strict=True):
            entries[str(path.relative_to(checkpoint))] = {"bytes": path.stat().st_size, "sha256": digest}
            on_file()
    manifest = checkpoint / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    _sync_and_hash(manifest)
    for directory in {path.parent for path in paths} | {checkpoint}:
        _sync(directory)


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MANIFEST]


def _sync_and_hash(path: Path) -> str:
    _sync(path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path
