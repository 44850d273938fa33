"""The comparison's sweeps: every flag is one, and every method gets the same tokens and the same number of tries."""

import json
from pathlib import Path

import pytest

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.sweep.file import read_sweep
from tests.tiny_runs import ROOT, losses, train_here

FILES = sorted((ROOT / "benchmarks" / "comparison").glob("*.yaml"))
PROBE = str(ROOT / "benchmarks" / "comparison" / "split_adamw.py")
SHARED = ("num_training_steps", "total_batch_size", "batch_size", "grad_clipping")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_methods_differ_in_their_own_flags_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cells = read_sweep(path).cells
    assert len({cell.expected_runs for cell in cells}) == 1
    configs = [parse_config(run.arguments()) for cell in cells for run in cell.next_runs({})]
    for section in ("model", "data", "schedule"):
        assert len({json.dumps(config.to_dict()[section]) for config in configs}) == 1, section
    assert len({tuple(getattr(config.training, name) for name in SHARED) for config in configs}) == 1


def test_the_probe_scales_the_rate_of_the_body_alone(tmp_path: Path) -> None:
    """With a scale of 1 it is AdamW; with another the rates of body and rest differ by it."""
    probe = ("--optimizer_file", PROBE, "--optimizer", "split_adamw")
    assert train_here(tmp_path / "adamw", updates=4) == 0
    assert train_here(tmp_path / "same", *probe, "--body_scale", "1", updates=4) == 0
    assert losses(tmp_path / "same") == pytest.approx(losses(tmp_path / "adamw"), rel=1e-5)
    assert train_here(tmp_path / "split", *probe, "--body_scale", "0.1", "--log_details", "true", updates=4) == 0
    line = json.loads((tmp_path / "split" / "metrics.jsonl").read_text().splitlines()[0])
    rates = sorted(value for name, value in line.items() if name.startswith("lr/"))
    assert rates == pytest.approx([line["lr"] * 0.1, line["lr"]])
