"""A run's folder: the name of every file in it, and its lock. No other file knows these names."""

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from peft_pretraining.atomic_write import aside, remove
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.manifest import MANIFEST, sync, write_manifest

CONFIGURATION = "run.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LOSS_CURVE = "loss.png"
LABEL, LOG = "sweep.json", "log.txt"
"""What a sweep leaves beside a run: what it calls the method, and what the run has printed."""
WANDB_ID = "wandb_id"
TENSORBOARD = "tensorboard"
CARD = "README.md"
STATE_FOLDER, TRAINER = "training_state", "trainer.json"
"""In a checkpoint: what resuming needs beside the weights."""
_LOCK = ".lock"
_CHECKPOINT = re.compile(r"model_(\d+)")
_LEFTOVER = re.compile(r"\..+\.(partial|old)")


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
            sync(metrics)

    def begin(self, update: int) -> Path:
        """An empty folder to write checkpoint `update` into; no reader takes it for a checkpoint."""
        self.discard(update)
        partial = self._partial(update)
        partial.mkdir(parents=True)
        return partial

    def discard(self, update: int) -> None:
        """Deletes what was written into the folder that `begin` gave, if anything."""
        shutil.rmtree(self._partial(update), ignore_errors=True)

    def publish(self, update: int, keep: int) -> Path:
        """Turns the folder that `begin` gave into a checkpoint, at once or not at all; keeps the newest."""
        partial, final = self._partial(update), self.checkpoint(update)
        write_manifest(partial)
        os.rename(partial, final)
        sync(self.path)
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
            if _LEFTOVER.fullmatch(entry.name):
                remove(entry)

    def _partial(self, update: int) -> Path:
        return aside(self.checkpoint(update))

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


def newest_checkpoint(source: Path) -> Path:
    """The newest checkpoint of a run folder; any other folder as it is, for whoever opens it to judge."""
    found = [] if is_checkpoint(source) else RunFolder(source).checkpoints()
    return found[0][1] if found else source


@contextmanager
def locked(path: Path, fresh: bool) -> Iterator[RunFolder]:
    """Creates and locks the run folder. Raises UsageError if it is in use, holds another run or is not
    writable.

    A POSIX record lock, unlike flock, is not inherited by forked data workers, which may outlive a killed run
    for some seconds.
    """
    folder, made = RunFolder(path), not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "a+")  # noqa: SIM115
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
                f"{path} holds a run already: add --continue_from auto to go on with it, or choose another "
                "--name or --save_dir"
            )
        folder.remove_leftovers()
        try:
            yield folder
        finally:
            if made:
                _remove_if_nothing_happened(path)


def _remove_if_nothing_happened(path: Path) -> None:
    """A start that failed leaves no folder with a lock alone."""
    with suppress(OSError):
        if [entry.name for entry in path.iterdir()] == [_LOCK]:
            (path / _LOCK).unlink()
            path.rmdir()


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path
