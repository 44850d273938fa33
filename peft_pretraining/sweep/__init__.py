"""Grids of runs and learning-rate searches: what is to be run, what is done, and how it is run."""
