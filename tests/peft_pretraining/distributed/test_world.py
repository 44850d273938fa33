"""Sessions of one process and of several, and what happens when one of them is gone or stands still."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.distributed.world import AgreedError, World, session
from peft_pretraining.errors import UsageError
from tests.tiny_runs import command, environment, records, train_here


def test_one_process_needs_no_group() -> None:
    with session(ParallelConfig(device="cpu", single_gpu=True)) as world:
        assert world.is_main and world.world_size == 1 and world.device == torch.device("cpu")
        assert world.gather_objects("x") == ["x"] and world.from_main(3) == 3
        assert world.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
        assert not torch.distributed.is_initialized()


def test_together_passes_a_mistake_on_as_agreed() -> None:
    with pytest.raises(AgreedError, match="a mistake"), World(torch.device("cpu")).together():
        raise UsageError("a mistake")


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "tpu"},
        {"dist_timeout": 0},
        {"gpu": 1},
        {"gpu": 1, "single_gpu": True, "device": "cpu"},
        {"single_gpu": True, "parallel": "fsdp"},
    ],
)
def test_contradictions_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="--"):
        ParallelConfig(**wrong)


def test_single_gpu_among_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes"), session(ParallelConfig(single_gpu=True)):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="--device cpu"), session(ParallelConfig(device="cuda")):
        pass


def started(tmp_path: Path, *more: str) -> "tuple[subprocess.Popen[bytes], list[psutil.Process]]":
    """Two processes in the middle of a run, and the workers by rank."""
    words = command(tmp_path / "run", *more, "--save_every", "100000", processes=2, updates=100_000)
    # A stopped process cannot be asked to end; torchrun itself ends at SIGUSR1 if it is not told otherwise.
    env = {**environment(), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10", "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGUSR1"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 90
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    return process, sorted(workers, key=lambda worker: worker.environ()["RANK"])


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_the_job_and_is_named(tmp_path: Path) -> None:
    process, workers = started(tmp_path, "--dist_timeout", "5")
    workers[1].suspend()
    stopped = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - stopped < 50
    assert "rank 1 gives no sign of life" in (tmp_path / "log").read_text()


def test_a_rank_that_dies_ends_the_job_and_is_named(tmp_path: Path) -> None:
    process, workers = started(tmp_path)
    workers[1].kill()
    assert process.wait(timeout=60) != 0
    log = (tmp_path / "log").read_text()
    assert "rank 0 cannot go on: rank 1 has ended" in log
    assert "Traceback (most recent call last)" not in log.split("rank 0 cannot go on")[0]


@pytest.mark.slow
def test_without_torchrun_the_orphans_end(tmp_path: Path) -> None:
    process, workers = started(tmp_path)
    process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_torchrun_passes_a_preemption_on(tmp_path: Path, number: int) -> None:
    process, workers = started(tmp_path)
    os.kill(process.pid, number)
    process.wait(timeout=40)
    assert len(list((tmp_path / "run").glob("model_*/manifest.json"))) == 1
    assert not any(worker.is_running() for worker in workers)


BAD_RANK = """
import sys
import torch
from peft_pretraining.model.llama import PretrainingLlama
from torchrun_main import main

forward, calls = PretrainingLlama.forward, []

def bad_at_the_third(model, *arguments):
    calls.append(model.training)
    loss = forward(model, *arguments)
    return loss * float("inf") if torch.distributed.get_rank() == 1 and sum(calls) == 3 and model.training else loss

PretrainingLlama.forward = bad_at_the_third
sys.exit(main(sys.argv[1:]))
"""


def test_an_update_that_is_bad_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    (tmp_path / "bad_rank.py").write_text(BAD_RANK)
    words = command(tmp_path / "run", processes=2)
    script = next(index for index, word in enumerate(words) if word.endswith("torchrun_main.py"))
    words[script] = str(tmp_path / "bad_rank.py")
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=200)
    assert done.returncode == 0, done.stderr
    skipped = [line["update_step"] for line in records(tmp_path / "run") if line.get("skipped")]
    assert skipped == [3]
    assert [line["loss"] for line in records(tmp_path / "run") if line["update_step"] == 3] == [None]
    assert "update 3 is skipped" in done.stderr


# Both processes know the timeout; rank 0 needs twice as long for something.
LONG_WORK = """
import sys, time
from pathlib import Path
from peft_pretraining.distributed.config import ParallelConfig
from peft_pretraining.distributed.world import session

def prepared():
    time.sleep(10)
    return "ready"

with session(ParallelConfig(device="cpu", dist_timeout=5)) as world:
    if sys.argv[1] == "announced":
        value = world.on_main(prepared, "prepares the data")
    else:
        value = world.from_main(prepared() if world.is_main else None)
    Path(sys.argv[2], f"rank{world.rank}").write_text(value)
"""


@pytest.mark.parametrize("kind", ["announced", pytest.param("unannounced", marks=pytest.mark.slow)])
def test_work_of_rank_0_that_is_announced_may_take_longer_than_the_timeout(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "work.py"
    script.write_text(LONG_WORK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launcher, str(script), kind, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120)
    values = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1) if (tmp_path / f"rank{rank}").exists()]
    if kind == "announced":
        assert (done.returncode, values) == (0, ["ready", "ready"]), done.stderr
        assert "rank 0 still prepares the data after 5 s" in done.stderr
    else:
        assert done.returncode != 0 and values == []
        assert "(--dist_timeout)" in done.stderr  # from whichever rank says it first


# Everything that rank 0 does alone and that may take long, slowed down: a checkpoint to verify, a corpus and a
# tokenizer to make, a hub that answers late, weights to write.
SLOW_PREPARATIONS = """
import sys, time
from peft_pretraining.checkpoint import find, store
from peft_pretraining.data import building

def slowed(function):
    def slow(*arguments, **more):
        time.sleep(12)
        return function(*arguments, **more)
    return slow

find.verify = slowed(find.verify)
building.find_corpus = slowed(building.find_corpus)
building.load_tokenizer = slowed(building.load_tokenizer)
store.save_model = slowed(store.save_model)
from torchrun_main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_no_long_preparation_ends_a_run(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_PREPARATIONS)
    assert train_here(tmp_path / "run", updates=4) == 0
    more = ("--continue_from", "auto", "--dist_timeout", "8", "--save_every", "100")
    words = command(tmp_path / "run", *more, processes=2, updates=6)
    script = next(index for index, word in enumerate(words) if word.endswith("torchrun_main.py"))
    words[script] = str(tmp_path / "slow.py")
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=280)
    assert done.returncode == 0, done.stderr
    for work in ("looks for a valid checkpoint", "prepares the data", "writes a checkpoint"):
        assert f"rank 0 still {work}" in done.stderr
