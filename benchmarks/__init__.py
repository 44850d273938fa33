"""Measured figures. Each module is one command, `python -m benchmarks.NAME`, that writes results/NAME.json."""
