"""Run every method in every setting and tabulate what agreed with the ordinary run and what was refused.

    python -m benchmarks.matrix             run what is missing, write benchmarks/results/matrix.json and the table
    python -m benchmarks.matrix --fresh     forget an earlier record first

A cell is (method and variant) x (float32, bfloat16, int8 state) x (eager, compiled) x (ordinary, per-layer) x
(1 process, DDP on 2, FSDP2 on 2): a tiny LLaMA, 20 updates on the same global batches, its weights' distance from those
of the same method and state format in one process, eager, ordinary, relative to the distance moved. Cells are those of
tests/optimizers/matrix.py; the table goes between the markers of docs/results.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, write_result
from tests.optimizers.matrix import Cell, all_cells, limit

RECORD = RESULTS / "matrix.json"
DOCUMENT = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
PROCESSES = {"single": 1, "ddp": 2, "fsdp": 2}
TITLES = {"single": "1 process", "ddp": "DDP 2", "fsdp": "FSDP2 2"}
DTYPES = ("float32", "bfloat16", "int8")
RUNS = 4  # eager and compiled, ordinary and per-layer
TOGETHER = 60  # cells between two records


def run(cells: list[Cell], folder: Path, processes: int) -> list[dict[str, Any]]:
    """Results of cells in one group of processes, in order; a cell that ends the processes is the last, as failed."""
    (folder / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells]))
    (folder / "results.json").write_text("[]")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.optimizers.matrix", str(folder / "cells.json"), str(folder / "results.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    results = json.loads((folder / "results.json").read_text())
    if len(results) < len(cells):
        reason = (done.stderr or "stopped").strip().splitlines()[-1]
        results.append({**asdict(cells[len(results)]), "failed": reason})
    return results


def status(entry: dict[str, Any]) -> str:
    """pass, refused or failed."""
    if "refused" in entry or "failed" in entry:
        return "refused" if "refused" in entry else "failed"
    cell = Cell(**{name: entry[name] for name in asdict(Cell(""))})
    return "pass" if entry["deviation"] <= limit(cell) else "failed"


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row for each method and variant, a column for each layout and state format; reasons below it."""
    columns = [(parallel, dtype) for parallel in PROCESSES for dtype in DTYPES]
    head = ["method", *(f"{TITLES[parallel]}, {dtype}" for parallel, dtype in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    reasons: dict[str, int] = {}
    for row in dict.fromkeys((e["method"], e["variant"]) for e in entries):
        found = [e for e in entries if (e["method"], e["variant"]) == row]
        texts = [box([e for e in found if (e["parallel"], e["state_dtype"]) == column], reasons) for column in columns]
        lines.append("| " + " | ".join([" ".join(filter(None, row)).replace("_", "\\_"), *texts]) + " |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes])


def box(entries: list[dict[str, Any]], reasons: dict[str, int]) -> str:
    """What became of eager, compiled, per-layer and compiled per-layer, and the largest deviation of those."""
    texts = []
    passed = [e["deviation"] for e in entries if status(e) == "pass"]
    if passed:
        texts.append(f"{len(passed)} pass, {max(passed):.0e}")
    for word in ("refused", "failed"):
        found = [e for e in entries if status(e) == word]
        reason = [e.get(word) or f"deviation {e['deviation']:.1e}" for e in found]
        numbers = {reasons.setdefault(text.splitlines()[0], len(reasons) + 1) for text in reason}
        if found:
            texts.append(f"{len(found)} {word} [{', '.join(map(str, sorted(numbers)))}]")
    if len(entries) < RUNS:
        texts.append(f"{RUNS - len(entries)} not run")
    return "; ".join(texts)


def publish(entries: list[dict[str, Any]], document: Path = DOCUMENT) -> None:
    """Put the table between the document's markers."""
    before, rest = document.read_text().split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{section(entries)}\n{END}{rest.split(END)[1]}")


def section(entries: list[dict[str, Any]]) -> str:
    """Counts and table."""
    counts = {word: sum(status(e) == word for e in entries) for word in ("pass", "refused", "failed")}
    count = f"{len(entries)} cells: " + ", ".join(f"{number} {word}" for word, number in counts.items())
    return f"\n{count}.\n\n{table(entries)}\n"


def main() -> None:
    """Run the cells that have no result yet, method by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget an earlier record")
    arguments = parser.parse_args()
    kept = json.loads(RECORD.read_text())["cells"] if RECORD.exists() and not arguments.fresh else []
    known = {json.dumps({k: e[k] for k in asdict(Cell(""))}): e for e in kept}
    cells = all_cells()
    missing = [cell for cell in cells if json.dumps(asdict(cell)) not in known]
    # The quick ones first; one start of processes for many cells.
    missing.sort(key=lambda cell: (cell.execution == "compiled", PROCESSES[cell.parallel]))
    entries = kept
    with tqdm(total=len(missing), unit="cell") as bar:
        while missing:
            processes, first = PROCESSES[missing[0].parallel], missing[:TOGETHER]
            alike = list(itertools.takewhile(lambda cell: PROCESSES[cell.parallel] == processes, first))  # noqa: B023
            with tempfile.TemporaryDirectory() as folder:
                found = run(alike, Path(folder), processes)
            known |= {json.dumps({k: entry[k] for k in asdict(Cell(""))}): entry for entry in found}
            del missing[: len(found)]
            entries = [known[key] for cell in cells if (key := json.dumps(asdict(cell))) in known]
            write_result("matrix", {"cells": entries})
            bar.update(len(found))
    publish(entries)
    print(section(entries))


if __name__ == "__main__":
    main()
