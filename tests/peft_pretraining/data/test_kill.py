"""kill -9 in the middle of reading, again and again, with other numbers of ranks and workers each time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.peft_pretraining.data.corpora import Ranks

SHAPES = [(1, 0), (2, 1), (1, 2), (4, 0), (2, 2), (1, 3), (4, 1), (8, 0)]  # (ranks, workers of each)


def start(folder: Path, updates: int, world_size: int, flags: dict[str, object]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.peft_pretraining.data.data_job", str(folder), str(updates)]
    return subprocess.Popen(
        [*command, str(world_size), json.dumps(flags)],
        cwd=Path(__file__).parents[3],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process: "subprocess.Popen[bytes]", seen: Path, lines: int, pause: float) -> None:
    """Kills the process and its workers a while after `seen` has so many lines; returns at once if it ends."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if seen.exists() and seen.read_bytes().count(b"\n") >= lines:
            time.sleep(pause)
            break
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lose_and_resume(c4: str, tokenizer: str, folder: Path, kills: int, updates: int, packing: bool) -> None:
    flags: dict[str, object] = {"dataset": c4, "tokenizer": tokenizer, "lanes": 8, "packing": packing}
    expected = Ranks(**flags).digests(updates)
    draw, seen = random.Random(kills), folder / "seen.txt"
    for kill in range(kills):
        world_size, workers = SHAPES[kill % len(SHAPES)]
        process = start(folder, 10**6, world_size, {**flags, "workers": workers})
        kill_when(process, seen, (kill + 1) * updates // (kills + 1), draw.uniform(0, 0.05))
        # A line may follow the last checkpoint: the run after it takes the same update again.
    start(folder, updates, 2, {**flags, "workers": 1}).wait()
    lines = [line.split() for line in seen.read_text().splitlines()]
    taken = {int(update): digest for update, digest in (line for line in lines if len(line) == 2)}
    wrong = [update for update in range(updates) if taken.get(update) != expected[update]]
    repeated = [line for line in lines if int(line[0]) < updates and line[1] != expected[int(line[0])]]
    assert (wrong, repeated) == ([], [])


def test_a_killed_run_goes_on_exactly(c4: str, tokenizer: str, tmp_path: Path) -> None:
    lose_and_resume(c4, tokenizer, tmp_path, kills=1, updates=150, packing=False)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_eight_kills_change_nothing(c4: str, tokenizer: str, tmp_path: Path, packing: bool) -> None:
    lose_and_resume(c4, tokenizer, tmp_path, kills=8, updates=400, packing=packing)
