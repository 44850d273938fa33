"""Checkpoints: what is saved, and how a run comes back from it exactly."""
