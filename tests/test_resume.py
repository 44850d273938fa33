"""A run that is killed, preempted or split over other processes goes on as if nothing had happened."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from peft_pretraining.run_folder.manifest import verify
from tests.tiny_runs import command, environment, losses, records, train, train_here

LONG = 120


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_here(folder) == 0
    return folder


def start(folder: Path, *more: str, processes: int | None = None, restarts: int = 0) -> "subprocess.Popen[bytes]":
    """A run of LONG updates in a process group of its own."""
    words = command(folder, *more, "--continue_from", "auto", processes=processes, updates=LONG)
    if restarts:
        words.insert(words.index("--standalone"), f"--max_restarts={restarts}")
    with open(folder.parent / "log", "ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment(), start_new_session=True)


def wait_for_lines(folder: Path, lines: int, process: "subprocess.Popen[bytes]") -> None:
    metrics, until = folder / "metrics.jsonl", time.monotonic() + 180
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < until, (folder.parent / "log").read_text()
        time.sleep(0.02)


def test_resuming_twice_gives_the_same_lines(uninterrupted: Path, tmp_path: Path) -> None:
    """The first time with workers; the second one right after a checkpoint that follows a resume."""
    often = ("--save_every", "3", "--keep_checkpoints", "9")
    assert train_here(tmp_path / "run", *often) == 0
    for checkpoint, workers in (("model_3", "2"), ("model_6", "0"), ("model_9", "1")):
        source = tmp_path / "run" / checkpoint
        more = (*often, "--workers", workers, "--continue_from", str(source))
        assert train_here(tmp_path / "run", *more) == 0
    assert records(tmp_path / "run") == records(uninterrupted)


@pytest.mark.parametrize("optimizer", ["adam8bit", "adafactor", "muon", "galore_adamw", "ldadamw", "sgd_boost"])
def test_every_kind_of_optimizer_state_comes_back(tmp_path: Path, optimizer: str) -> None:
    more = ["--optimizer", optimizer, "--lr", "1e-3"]
    more += ["--rank", "8"] if optimizer in ("galore_adamw", "ldadamw") else []
    assert train_here(tmp_path / "whole", *more) == 0
    assert train_here(tmp_path / "parts", *more, "--continue_from", str(tmp_path / "whole" / "model_4")) == 0
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_int8_and_per_layer_state_comes_back(tmp_path: Path) -> None:
    more = ["--optimizer", "galore_adamw8bit_per_layer", "--rank", "8", "--update_proj_gap", "5", "--lr", "1e-3"]
    assert train_here(tmp_path / "whole", *more) == 0
    assert train_here(tmp_path / "parts", *more, "--continue_from", str(tmp_path / "whole" / "model_4")) == 0
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_kill_9_in_the_middle_loses_and_repeats_nothing(tmp_path: Path) -> None:
    more = ("--save_every", "7", "--workers", "1", "--eval_every", "50")
    folder = tmp_path / "killed"
    for lines in (20, 45, 90):
        process = start(folder, *more)
        wait_for_lines(folder, lines, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = train(folder, *more, "--continue_from", "auto", updates=LONG)
    assert done.returncode == 0, done.stderr
    assert train_here(tmp_path / "whole", *more, updates=LONG) == 0
    assert records(folder) == records(tmp_path / "whole")
    assert not list(folder.glob(".model_*"))


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_nothing_is_lost(tmp_path: Path) -> None:
    """Two processes, one killed twice; then the same checkpoint on one process and as shards."""
    folder, more = tmp_path / "killed", ("--save_every", "20", "--eval_every", "50", "--keep_checkpoints", "9")
    process = start(folder, *more, processes=2, restarts=3)
    for lines in (30, 70):
        wait_for_lines(folder, lines, process)
        rank_one = [child for child in psutil.Process(process.pid).children() if child.environ()["RANK"] == "1"]
        rank_one[0].kill()
        while rank_one[0].is_running() and rank_one[0].status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    whole = tmp_path / "whole"
    assert train(whole, *more, processes=2, updates=LONG).returncode == 0
    assert records(folder) == records(whole)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_sn", "ldadamw"])
@pytest.mark.parametrize("saved_by", ["ddp", "fsdp"])
def test_saved_on_two_processes_goes_on_with_one_and_with_four(tmp_path: Path, saved_by: str, optimizer: str) -> None:
    """Saved in the background; continued as copies and as shards."""
    more = ("--save_every", "4", "--optimizer", optimizer, "--lr", "1e-3", "--batch_size", "2", "--async_save")
    more += ("--rank", "8") if optimizer == "ldadamw" else ()
    whole = tmp_path / "whole"
    assert train(whole, *more, "--parallel", saved_by, processes=2).returncode == 0
    for processes, parallel in ((None, "ddp"), (4, "ddp"), (4, "fsdp")):
        part = tmp_path / f"{processes}_{parallel}"
        source = ("--continue_from", str(whole / "model_8"), "--parallel", parallel)
        done = train(part, *more, *source, processes=processes)
        assert done.returncode == 0, done.stderr
        assert len(losses(part)) == 12
        assert losses(part) == pytest.approx(losses(whole), rel=1e-4 if optimizer == "ldadamw" else 1e-5)


def test_checkpoints_saved_in_the_background_are_those_saved_at_once(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_here(folder, "--async_save") == 0
    assert records(folder) == records(uninterrupted)
    for name in ("model_4", "model_8", "model_12"):
        verify(folder / name)
        for file in (uninterrupted / name).rglob("*.safetensors"):
            expected = load_file(file)
            found = load_file(folder / name / file.relative_to(uninterrupted / name))
            assert found.keys() == expected.keys()
            assert all(found[key].equal(expected[key]) for key in expected), (name, file)
    assert train_here(tmp_path / "parts", "--continue_from", str(folder / "model_8")) == 0
    assert records(tmp_path / "parts") == records(uninterrupted)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_update_saves_and_says_so(tmp_path: Path, number: int, status: int) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--save_every", "1000", "--eval_every", "50")
    wait_for_lines(folder, 10, process)
    os.killpg(process.pid, number)
    assert process.wait(timeout=30) == status
    done = len(losses(folder))
    assert 10 <= done < LONG
    assert (folder / f"model_{done}" / "manifest.json").exists()


def test_a_preempted_run_goes_on_to_the_same_lines(tmp_path: Path) -> None:
    more = ("--save_every", "1000", "--eval_every", "1", "--workers", "1")
    folder = tmp_path / "run"
    process = start(folder, *more)
    wait_for_lines(folder, 21, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    done = len(losses(folder))
    end = str(done + 10)
    assert (
        train_here(folder, *more, "--continue_from", "auto", "--scheduler", "constant", "--num_training_steps", end)
        == 0
    )
    lines = records(folder)
    assert [(line["update_step"], "loss" in line) for line in lines] == [
        (update, kind) for update in range(1, done + 11) for kind in (True, False)
    ]


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """The first one waits for an update of 2048 micro-batches, which takes longer than this test."""
    folder = tmp_path / "run"
    process = start(folder, "--total_batch_size", "8192")
    until = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(2.5)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert not list(folder.glob("model_*"))
