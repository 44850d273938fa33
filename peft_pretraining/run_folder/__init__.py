"""The folder of a run: the names of its files, its lock, and checkpoints that are whole or not there."""
