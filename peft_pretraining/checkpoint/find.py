"""Which folder a run lives in, and which checkpoint it continues from."""

import time
from pathlib import Path

from loguru import logger

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import RunFolder, folder_of, is_checkpoint
from peft_pretraining.run_folder.manifest import DamagedCheckpoint, verify


def choose_folder(config: CheckpointConfig, name: str | None) -> Path:
    """The run folder that the flags ask for; without --save_dir, a run is continued where it is."""
    if config.save_dir is not None:
        return Path(config.save_dir)
    if config.continue_from not in (None, "auto"):
        return folder_of(Path(config.continue_from))
    return Path("runs") / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))


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
