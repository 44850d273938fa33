"""Worker processes end when their rank does, and not before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.peft_pretraining.data.corpora import open_data

LOOP = """
import signal, sys, time
from tests.peft_pretraining.data.corpora import open_data

signals = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: signals.append(number))
data = open_data(dataset=sys.argv[1], tokenizer=sys.argv[2], workers=2)
next(data)
print("ready", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(0.5)
for _ in range(20):
    next(data)
print("done", flush=True)
if sys.argv[3] == "raise":
    raise KeyError("in the loop")
"""


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, "return"), pytest.param(signal.SIGINT, "raise", marks=pytest.mark.slow)]
)
def test_a_signal_to_all_leaves_the_rank_its_data_and_no_process_behind(
    c4: str, tokenizer: str, number: signal.Signals, end: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, c4, tokenizer, end],
        cwd=Path(__file__).parents[3],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    assert process.stdout.readline() == "done\n"
    assert process.wait(timeout=60) == (0 if end == "return" else 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _group_lives(process.pid):
        time.sleep(0.05)
    assert not _group_lives(process.pid)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.slow
def test_a_core_prepares_tokens_much_faster_than_it_trains_on_them(c4: str, tokenizer: str, packing: bool) -> None:
    data = open_data(dataset=c4, tokenizer=tokenizer, packing=packing, global_batch=64, batch_size=64)
    next(data)
    started, tokens = time.process_time(), 0
    for _ in range(40):
        tokens += int(next(data).micro_batches[0].lengths.sum())
    assert tokens / (time.process_time() - started) > 50_000
