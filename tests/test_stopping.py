"""Stopping, going on, extending and failing: nothing is lost, and the next command is said."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, command, environment, flags, losses, records, train_here


def updates(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("model_")) for path in folder.glob("model_*"))


def test_the_command_of_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """Named by --name alone, stopped by Ctrl-C, then continued with the words that it printed."""
    words = command("unused", "--eval_every", "5000", updates=5000)
    at = words.index("--save_dir")
    words[at : at + 2] = ["--name", "mine"]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log = ""
    while "update 1/5000" not in log:
        log += (line := process.stderr.readline())
        assert line
    process.send_signal(signal.SIGINT)
    log += process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (done,) = updates(tmp_path / "runs/mine")
    said = re.search(rf"stopped at update {done}. To go on: (.*)", log)
    assert said is not None, log
    again = shlex.split(said[1])
    again[:2] = [words[0], str(ROOT / "torchrun_main.py")]
    assert again[2:] == ["--config", "runs/mine/run.json", "--continue_from", "auto"]
    more = ["--num_training_steps", str(done + 2)]
    last = subprocess.run([*again, *more], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert last.returncode == 0, last.stderr
    assert len(losses(tmp_path / "runs/mine")) == done + 2
    fresh = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert fresh.returncode == 2 and "runs/mine holds a run already: add --continue_from auto" in fresh.stderr


def test_checkpoints_come_with_time(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", "--save_every", "0.001s", "--keep_checkpoints", "99") == 0
    assert updates(tmp_path / "run") == list(range(1, 13))
    assert train_here(tmp_path / "slow", "--save_every", "2h") == 0
    assert updates(tmp_path / "slow") == [12]


def test_files_have_the_modes_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o027)
    try:
        assert train_here(tmp_path / "run", updates=4) == 0
    finally:
        os.umask(before)
    for path in (*(tmp_path / "run").rglob("*"), *(tmp_path / "cache").rglob("*.safetensors")):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_crash_in_an_evaluation_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The fourth update is saved although no checkpoint was due, and the run goes on to the lines of one that had
    no crash."""
    from peft_pretraining.training import pretrain

    assert train_here(tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "evaluate", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_here(tmp_path / "run", "--save_every", "1000")
    assert updates(tmp_path / "run") == [4]
    assert "fails after update 4, which is saved. To go on:" in capfd.readouterr().err
    assert train_here(tmp_path / "run", "--continue_from", "auto") == 0
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_a_checkpoint_is_there_before_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_pretraining.training import pretrain

    seen = []
    evaluate = pretrain.evaluate
    monkeypatch.setattr(pretrain, "evaluate", lambda run: seen.append(run.checkpoints.last_saved) or evaluate(run))
    assert train_here(tmp_path / "run") == 0
    assert seen == [4, 8, 12]


def test_a_failure_inside_an_update_saves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    steps = []
    step = torch.optim.AdamW.step

    def failing(self: torch.optim.AdamW, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 6:
            raise RuntimeError("a kernel failed")
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        train_here(tmp_path / "run", "--save_every", "4")
    assert updates(tmp_path / "run") == [4]


def test_a_picture_that_cannot_be_drawn_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/loss.png").mkdir(parents=True)
    assert train_here(tmp_path / "run") == 0
    assert "loss.png is not drawn" in capfd.readouterr().err
    assert json.loads((tmp_path / "run/summary.json").read_text())["updates"] == 12


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", "--tokenizer", str(tmp_path / "absent")) == 2
    assert not (tmp_path / "run").exists()
    (tmp_path / "kept").mkdir()
    assert train_here(tmp_path / "kept", "--tokenizer", str(tmp_path / "absent")) == 2
    assert (tmp_path / "kept").exists(), "a folder of the user's own stays"


@pytest.mark.parametrize("scheduler", ["cosine", "wsd"])
def test_extending_says_how_the_rate_moves(tmp_path: Path, scheduler: str, capfd: pytest.CaptureFixture[str]) -> None:
    more = ("--scheduler", scheduler, "--warmup_steps", "1", "--save_every", "8")
    assert train_here(tmp_path / "run", *more) == 0
    capfd.readouterr()
    start = tmp_path / "run" / ("model_12" if scheduler == "cosine" else "model_8")
    assert train_here(tmp_path / "run", *more, "--continue_from", str(start), "--num_training_steps", "24") == 0
    said = re.search(r"lr goes from (\S+) at update (\d+) to (\S+) at update (\d+)", log := capfd.readouterr().err)
    assert said is not None and int(said[4]) == int(said[2]) + 1
    rates = {line["update_step"]: line["lr"] for line in records(tmp_path / "run") if "loss" in line}
    for rate, update in ((said[1], said[2]), (said[3], said[4])):
        assert float(rate) == pytest.approx(rates[int(update)], rel=1e-2)
    assert ("lr rises" in log and "--scheduler wsd" in log) == (scheduler == "cosine")


def test_defaults_lose_little(tmp_path: Path) -> None:
    from peft_pretraining.cli.parse import parse_config

    pairs = zip(*[iter(flags("x"))] * 2, strict=True)
    words = [word for pair in pairs if pair[0] not in ("--save_every", "--eval_every") for word in pair]
    for steps, every in (("10000", 500), ("150000", 1000), ("7", 1)):
        config = parse_config([*words, "--num_training_steps", steps], world_size=1)
        assert config.training.eval_every == every
        assert config.checkpoint.save_every.seconds == 1800 and config.checkpoint.save_every.updates is None
