"""metrics.jsonl, the figure and wandb."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_pretraining.tracking.config import LoggingConfig
from peft_pretraining.tracking.loss_curve import draw_loss_curve
from peft_pretraining.tracking.metrics import MetricsFile, peak_memory_mib, read_metrics
from peft_pretraining.tracking.wandb_run import start_tracker
from peft_pretraining.units import MIB
from tests.tiny_runs import command, environment, train_here


def test_continuing_drops_what_came_later_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"update_step": 1, "loss": 3.0}, {"update_step": 2, "loss": 2.0}, {"update_step": 2, "eval_loss": 2.5}]
    lines += [{"update_step": 3, "loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"update_step": 4, "lo')
    metrics = MetricsFile(path)
    metrics.continue_after(2)
    metrics.write({"update_step": 3, "loss": 1.5})
    metrics.close()
    assert read_metrics(path) == [*lines[:3], {"update_step": 3, "loss": 1.5}]


def test_a_line_is_on_its_way_before_the_next_is_written(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.continue_after(0)
    metrics.write({"update_step": 1, "loss": math.nan, "skipped": True})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"update_step": 1, "loss": None, "skipped": True}
    metrics.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=80).map(str.encode)
    | st.sampled_from([b"[1]\n", b"1\n", b"{}\n"])
)
def test_a_hostile_file_is_survived(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content + b'\n{"update_step": 1, "loss": 2.0}\n')
    metrics = MetricsFile(path)
    metrics.continue_after(1)
    metrics.close()
    assert {"update_step": 1, "loss": 2.0} in read_metrics(path)


def test_the_curve_is_a_png_with_and_without_lines(tmp_path: Path) -> None:
    lines = [{"update_step": n, "loss": None if n == 3 else 5 / n} for n in range(1, 80)]
    for name, records in (("full", [*lines, {"update_step": 40, "eval_loss": 0.2}]), ("empty", [])):
        draw_loss_curve(records, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_peak_memory_is_this_process_s() -> None:
    before = peak_memory_mib(torch.device("cpu"))
    held = torch.ones(60_000_000)
    assert peak_memory_mib(torch.device("cpu")) >= before > 50
    assert held.numel() * 4 / MIB < peak_memory_mib(torch.device("cpu"))


def test_auto_without_credentials_is_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert train_here(tmp_path / "run", "--wandb_mode", "auto", updates=4) == 0
    assert "wandb is off" in capfd.readouterr().err
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    """wandb is hidden by a module finder in a process of its own."""
    hide = "import sys, importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda n, *a: None if n == 'wandb' else f(n, *a)\n"
    hide += "from torchrun_main import main; sys.exit(main(sys.argv[1:]))"
    words = command(tmp_path / "run", "--wandb_mode", "offline", updates=4)
    done = subprocess.run(
        [words[0], "-c", hide, *words[2:]], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 2
    assert "pip install wandb" in done.stderr and "Traceback" not in done.stderr


def test_details_add_the_applied_rates(tmp_path: Path) -> None:
    more = ("--optimizer", "galore_adamw", "--rank", "8", "--galore_scale", "0.25", "--log_details", "true")
    assert train_here(tmp_path / "run", *more, "--scheduler", "constant", "--warmup_steps", "0", updates=4) == 0
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    rates = {key: value for key, value in line.items() if key.startswith("lr/")}
    assert pytest.approx(2.5e-3) in rates.values() and pytest.approx(1e-2) in rates.values()


def test_defaults() -> None:
    assert LoggingConfig().wandb_mode == "auto"
    assert start_tracker.__doc__ and os.environ["WANDB_MODE"] == "disabled"
