"""A disk that is really full: a file system of a few megabytes, mounted for the test."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peft_pretraining.run_folder.layout import RunFolder
from peft_pretraining.run_folder.manifest import verify
from tests.tiny_runs import records, train, train_here


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints of half a megabyte, and not for a third one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_checkpoint_that_does_not_fit_costs_nothing_but_itself(disk: Path, tmp_path: Path) -> None:
    run = disk / "run"
    done = train(run, "--keep_checkpoints", "9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "update 12 could not be written" in done.stderr and "No space left" in done.stderr
    assert f"The last good checkpoint is {run / 'model_8'}" in done.stderr
    assert [update for update, _ in RunFolder(run).checkpoints()] == [8, 4]
    for _, checkpoint in RunFolder(run).checkpoints():
        verify(checkpoint)
    assert not list(run.glob(".model_*"))
    assert train_here(run, "--keep_checkpoints", "1", "--continue_from", "auto", "--save_dir", str(run)) == 2
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert train_here(run, "--keep_checkpoints", "9", "--continue_from", "auto") == 0
    assert train_here(tmp_path / "whole") == 0
    assert records(run) == records(tmp_path / "whole")


def test_metrics_that_do_not_fit_end_the_run_with_the_last_good_checkpoint(disk: Path, tmp_path: Path) -> None:
    run = disk / "run"
    assert train_here(run) == 2  # one checkpoint less than it asks for
    with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 4096)
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - 5 * 4096)
    done = train(run, "--continue_from", "auto", "--save_every", "100", updates=90)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "metrics cannot be written" in done.stderr
    assert f"The last good checkpoint is {run / 'model_8'}" in done.stderr
    (disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert train_here(run, "--continue_from", "auto") == 0
    assert train_here(tmp_path / "whole") == 0
    assert records(run) == records(tmp_path / "whole")
