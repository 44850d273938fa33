"""Every method in every setting: a covering part of the matrix by default, all of it behind the marker `slow`."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.optimizers.matrix import Cell, all_cells, engine_methods, limit, variants

ROOT = Path(__file__).parents[2]


def covering() -> list[Cell]:
    """Each method in each single setting, and each pair of settings on some method."""
    cells = []
    pairs = [(p, d, per_layer) for p in ("ddp", "fsdp") for d in ("bfloat16", "int8") for per_layer in (False, True)]
    for number, method in enumerate(engine_methods()):
        for variant in variants(method):
            plain = Cell(method, variant)
            cells += [replace(plain, parallel="ddp", per_layer=True), replace(plain, parallel="fsdp")]
        cells += [Cell(method, variants(method)[0], parallel="ddp"), Cell(method, parallel="fsdp", per_layer=True)]
        parallel, dtype, per_layer = pairs[number % len(pairs)]
        cells.append(Cell(method, variants(method)[0], dtype, "eager", per_layer, parallel))
    return cells


def run(cells: list[Cell], folder: Path, processes: int = 2) -> list[dict]:
    """Run cells in one group of processes; the results, in order."""
    (folder / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.optimizers.matrix", str(folder / "cells.json"), str(folder / "results.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def check(cells: list[Cell], results: list[dict]) -> None:
    """Every cell agrees with the ordinary run; none is refused that need not be."""
    wrong = [
        f"{cell}: {result.get('refused') or result['deviation']}"
        for cell, result in zip(cells, results, strict=True)
        if not result.get("deviation", 1.0) <= limit(cell)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(1500)
def test_covering_part(tmp_path):
    cells = covering()
    check(cells, run(cells, tmp_path))


def test_accumulated_per_layer_updates(tmp_path):
    """With several micro-batches: exact for momentum and error feedback, refused by name elsewhere."""
    exact = [
        Cell(m, parallel=p, per_layer=True, micro_batches=2)
        for m in ("sgd_boost", "sgd", "ldadamw")
        for p in ("ddp", "fsdp")
    ]
    refused = [Cell(m, per_layer=True, micro_batches=2) for m in ("adamw", "adamw_sn", "adam_mini", "lion")]
    results = run([*exact, *refused], tmp_path)
    check(exact, results[: len(exact)])
    for cell, result in zip(refused, results[len(exact) :], strict=True):
        assert "micro-batch" in result["refused"], cell


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_full_product(tmp_path):
    cells = all_cells()
    check(cells, run(cells, tmp_path))
