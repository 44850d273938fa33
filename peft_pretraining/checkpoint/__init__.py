"""Checkpoints: the folder of a run, what is saved, and how a run comes back from it exactly."""

from peft_pretraining.checkpoint.config import CheckpointConfig

__all__ = ["CheckpointConfig"]
