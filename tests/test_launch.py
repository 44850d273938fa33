"""torchrun and this project's launcher over it: exit statuses are kept, and mistakes end in their own words."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, environment, flags

QUICK = """
import os, signal, sys, time
from peft_pretraining.console import explain
how = sys.argv[1]
if how == "misuse":
    sys.stderr.write("ERROR --foo is no flag\\n"); explain("--foo is no flag"); sys.exit(2)
if how == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "waits":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os.write(1, b"saved\\n"), os._exit(75)))
    signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(1), os.write(1, b"saved\\n"), os._exit(75)))
    os.write(1, b"ready\\n"); time.sleep(60)
"""


def start(tmp_path: Path, module: str, how: str) -> "subprocess.Popen[str]":
    (tmp_path / "quick.py").write_text(QUICK)
    words = [sys.executable, "-m", module, "--standalone", "--nproc_per_node=2", str(tmp_path / "quick.py"), how]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment(), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_a_mistake_ends_in_its_own_line(tmp_path: Path) -> None:
    process = start(tmp_path, "peft_pretraining.launch", "misuse")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert set(said.splitlines()) <= {"ERROR --foo is no flag"} | set(_chatter(said))
    assert "Traceback" not in said and said.splitlines()[-1] == "ERROR --foo is no flag"


def _chatter(said: str) -> list[str]:
    """What torch says at the start about threads."""
    return [line for line in said.splitlines() if "OMP_NUM_THREADS" in line or set(line) <= set("* ")]


def test_torchrun_itself_ends_with_the_mistake(tmp_path: Path) -> None:
    """Its traceback is its own; the process's message stands in the last lines of it."""
    process = start(tmp_path, "torch.distributed.run", "misuse")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert any("--foo is no flag" in line for line in said.splitlines()[-3:]), said


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    process = start(tmp_path, "peft_pretraining.launch", "dies")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "SIGKILL" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_on_and_its_status_kept(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "peft_pretraining.launch", "waits")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    time.sleep(0.2)
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 75 and out.count("saved") == 2
    assert "Traceback" not in said


def test_a_mistake_in_a_flag_of_a_real_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "peft_pretraining.launch", "--standalone", "--nproc_per_node=2", "torchrun_main.py"]
    run = [*words, *flags(tmp_path / "run", "--rnak", "8")]
    done = subprocess.run(run, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("--rnak") == 1 and "--rnak" in done.stderr.splitlines()[-1]
