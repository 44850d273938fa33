"""Keeps what a sweep's runs ended with in one small file: `python -m benchmarks.collect runs/comparison_9m ...`.

Every finished run under the folders by its name, which says method, rate and seed, with the numbers of its
summary.json. Writes benchmarks/results/comparison.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import write_result
from peft_pretraining.run_folder.layout import SUMMARY


def collect(folder: Path) -> dict[str, Any]:
    """The summaries of a folder's finished runs, without paths."""
    found = {}
    for path in sorted(folder.glob(f"*/{SUMMARY}")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name] = {k: v for k, v in summary.items() if isinstance(v, int | float)}
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="run folders of sweeps")
    arguments = parser.parse_args()
    print(write_result("comparison", {folder.name: collect(folder) for folder in arguments.folders}))


if __name__ == "__main__":
    main()
