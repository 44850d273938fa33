"""Every method in every setting: a covering part of the matrix by default, all of it behind the marker `slow`."""

from dataclasses import asdict, replace

import pytest

from benchmarks.matrix import PROCESSES, run, status
from tests.optimizers.matrix import Cell, all_cells, engine_methods, variants


def covering() -> list[Cell]:
    """Each method in each single setting, and each pair of settings on some method."""
    cells = []
    pairs = [(p, d, per_layer) for p in ("ddp", "fsdp") for d in ("bfloat16", "int8") for per_layer in (False, True)]
    for number, method in enumerate(engine_methods()):
        for variant in variants(method):
            plain = Cell(method, variant)
            cells += [replace(plain, parallel="ddp", per_layer=True), replace(plain, parallel="fsdp")]
        first = Cell(method, variants(method)[0])
        cells += [replace(first, parallel="ddp"), replace(first, parallel="fsdp", per_layer=True)]
        parallel, dtype, per_layer = pairs[number % len(pairs)]
        cells.append(replace(first, state_dtype=dtype, per_layer=per_layer, parallel=parallel))
    return cells


def check(cells: list[Cell], results: list[dict]) -> None:
    """Every cell agrees with the ordinary run; none is refused that need not be."""
    assert [Cell(**{name: entry[name] for name in asdict(Cell(""))}) for entry in results] == cells, results[-1]
    wrong = [entry for entry in results if status(entry) != "pass"]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.timeout(1500)
def test_covering_part(tmp_path):
    cells = covering()
    check(cells, run(cells, tmp_path, 2))


def test_accumulated_per_layer_updates(tmp_path):
    """With several micro-batches: exact for momentum and error feedback, the same on shards and replicas for
    projections, refused by name elsewhere."""
    exact = [
        Cell(m, parallel=p, per_layer=True, micro_batches=2)
        for m in ("sgd_boost", "sgd", "ldadamw")
        for p in ("ddp", "fsdp")
    ]
    projected = [Cell("galore_adamw", parallel=p, per_layer=True, micro_batches=2) for p in ("ddp", "fsdp")]
    refused = [Cell(m, per_layer=True, micro_batches=2) for m in ("adamw", "adamw_sn", "adam_mini", "lion")]
    results = run([*exact, *refused, *projected], tmp_path, 2)
    check(exact, results[: len(exact)])
    for cell, result in zip(refused, results[len(exact) :], strict=False):
        assert "micro-batch" in result["refused"], cell
    replicas, shards = results[-len(projected) :]  # off the ordinary run: a basis comes from the first micro-batch
    assert replicas["deviation"] == pytest.approx(shards["deviation"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_full_product(tmp_path):
    """Nothing is refused."""
    cells = all_cells()
    results: list[dict] = []
    for processes in (1, 2):
        left = [cell for cell in cells if PROCESSES[cell.parallel] == processes]
        results += run(left, tmp_path, processes)
        assert status(results[-1]) != "failed", results[-1]
    assert len(results) == len(cells)
    assert not [entry for entry in results if status(entry) == "failed"]
    assert not [entry for entry in results if status(entry) == "refused"]
