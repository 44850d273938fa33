"""Checkpoints: what is saved, and how a run comes back from it exactly."""

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.checkpoint.store import load_checkpoint, save_checkpoint

__all__ = ["CheckpointConfig", "load_checkpoint", "save_checkpoint"]
