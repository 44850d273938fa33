"""The report says what is missing and how to measure it; the GPU script refuses a machine without one."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, report
from benchmarks.common import as_text, stamp


def test_a_missing_result_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "bash scripts/gpu_benchmarks.sh" in report.render("# Title\n{{gpu}}\n")
    with pytest.raises(KeyError):
        report.render("{{nothing}}")


def test_figures_reach_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path / "figures")
    row = {"method": "galore", "dtype": "float32", "peer": "plain galore", "ratio": 0.5, "speedup_amortised": 2.25}
    row |= {"milliseconds": {"mine": 40.0, "peer": 80.0}, "bound_ms": {"bytes": 10.0, "products": 20.0}}
    row |= {"of_bound": 0.75}
    result = {"stamp": stamp(), "clock": "process_time", "limits": {"torch.float32": 2e11}, "rows": [row]}
    result["refresh_seconds"] = {"svd": 3.0, "randomized": 0.25}
    (tmp_path / "optimizer_step.json").write_text(json.dumps(result))
    text = report.render("{{optimizer_step}}")
    assert "| galore | float32 | plain galore | 0.50 | 2.25 | 40 | 80 | 30 | 75% |" in text
    assert "(12.0 times faster)" in text and "CPU seconds" in text
    assert (tmp_path / "figures" / "optimizer_step.png").stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_figures_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().out


def test_results_hold_a_record_per_line() -> None:
    content = {"stamp": {"cores": 2}, "cells": [{"a": 1, "b": None}, {"a": 2.5}], "empty": [], "numbers": [1, 2]}
    text = as_text(content)
    assert json.loads(text) == content
    assert '    {"a": 1, "b": null},\n    {"a": 2.5}\n' in text
