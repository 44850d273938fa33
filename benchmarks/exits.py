"""Whether finished runs end in order: many short runs of two sharded processes under load, and their exit statuses.

    python -m benchmarks.exits --runs 500
    python -m benchmarks.exits --runs 500 --leave interpreter      # ends as any Python program does instead

To spare importing torch a thousand times, the processes are forked from one that has imported everything; otherwise a
run is that of torchrun_main.py: a tiny model in two FSDP2 shards on gloo, data read by a thread, an evaluation, a
checkpoint and a summary. Prints how many runs ended with which statuses; exit status 1 if any was not 0.
"""

import argparse
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torchrun_main
from peft_pretraining.console import leave
from tests import tiny_runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--leave", choices=("at_once", "interpreter"), default="at_once")
    parser.add_argument("--load", type=int, default=2, help="processes that keep the cores busy (default: 2)")
    options = parser.parse_args()
    _import_everything()
    store, port = _start_store()
    load = [subprocess.Popen(["nice", "-n", "10", "sh", "-c", "while :; do :; done"]) for _ in range(options.load)]
    counts: Counter[tuple[int, ...]] = Counter()
    try:
        for number in range(options.runs):
            counts[_run(options.leave, port)] += 1
            if (number + 1) % 10 == 0:
                print(f"{number + 1} runs: {dict(counts)}", flush=True)
    finally:
        for process in (*load, store):
            process.kill()
    print(f"{options.runs} runs, left {options.leave}: statuses of both processes {dict(counts)}")
    return int(set(counts) != {(0, 0)})


def _start_store() -> tuple["subprocess.Popen[str]", int]:
    """The store that torchrun keeps for its processes, in a process of its own, and its port."""
    code = "import torch.distributed as d, time; s = d.TCPStore('127.0.0.1', 0, is_master=True); "
    code += "print(s.port, flush=True); time.sleep(1e9)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def _import_everything() -> None:
    import transformers  # noqa: F401

    import peft_pretraining.data.records  # noqa: F401


def _run(how: str, port: int) -> tuple[int, ...]:
    """The exit statuses of two processes; of one that a signal ended, the signal's number below zero."""
    folder = Path(tempfile.mkdtemp(prefix="exits"))
    words = tiny_runs.flags(folder / "run", "--parallel", "fsdp", "--eval_every", "2", updates=2)
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            _train(rank, port, words, folder / f"log{rank}", how)
        children.append(child)
    statuses = tuple(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    if any(statuses):
        print(statuses, *[(folder / f"log{rank}").read_text()[-1500:] for rank in range(2)], sep="\n", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return statuses


def _train(rank: int, port: int, words: list[str], log: Path, how: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    atexit.unregister(shutil.rmtree)  # the parent still needs the inputs
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = torchrun_main.main(words)
    if how == "at_once":
        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
