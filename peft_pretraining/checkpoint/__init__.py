"""Checkpoints: the folder of a run, what is saved, and how a run comes back from it exactly."""

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.checkpoint.folder import (
    METRICS,
    DamagedCheckpoint,
    RunFolder,
    choose_folder,
    find_checkpoint,
    locked,
    verify,
)
from peft_pretraining.checkpoint.store import load_checkpoint, save_checkpoint

__all__ = [
    "METRICS",
    "CheckpointConfig",
    "DamagedCheckpoint",
    "RunFolder",
    "choose_folder",
    "find_checkpoint",
    "load_checkpoint",
    "locked",
    "save_checkpoint",
    "verify",
]
