"""Freezes the processes of a torchrun job for a moment and reads from the ranks' Python stacks what they are doing."""

import inspect
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from peft_pretraining.checkpoint.store import Checkpoints
from peft_pretraining.data.lanes import Lane
from peft_pretraining.distributed.world import session
from peft_pretraining.training.evaluation import evaluate
from peft_pretraining.training.pretrain import pretrain
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step

# The first of these functions that stands on the main thread's stack names the phase. They are the functions
# themselves, so that a phase cannot be lost when one of them moves.
_PHASES: tuple[tuple[Callable[..., object], str], ...] = (
    (Checkpoints.save, "checkpoint"),
    (evaluate, "evaluation"),
    (Lane._fill, "data refill"),
    (train_step, "update"),
    (restore_or_start, "start"),
    (run_folder, "start"),
    (session, "start"),
    (pretrain, "between"),
)
_STARTING = "start"
_OWN_CODE = ("torchrun_main.py", "peft_pretraining/", "optimizers/")
_SPY = Path(sys.executable).with_name("py-spy")


class Job:
    """An agent of torchrun, run by `target(*arguments)` in a forked process, and the ranks that it has started.

    log: gets what they print.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[object, ...], log: Path) -> None:
        # Forked: what this process has imported, the agent and its ranks need not import again.
        context = multiprocessing.get_context("fork")
        self._child = context.Process(target=_logged, args=(target, arguments, log))
        self._child.start()
        self._agent = psutil.Process(self._child.pid)

    def poll(self) -> int | None:
        """The exit status of the agent; None while it runs."""
        return self._child.exitcode

    def ranks(self) -> list[psutil.Process]:
        """The living processes of the training script, by rank."""
        with suppress(psutil.NoSuchProcess):
            return sorted(self._agent.children(), key=lambda process: (process.create_time(), process.pid))
        return []

    @contextmanager
    def frozen(self) -> Iterator[list[psutil.Process]]:
        """Stops the agent and its ranks, which are given, and lets those that still live go on afterwards."""
        _signal(self._agent, signal.SIGSTOP)
        ranks = self.ranks()
        for process in ranks:
            _signal(process, signal.SIGSTOP)
        until = time.monotonic() + 5
        while time.monotonic() < until and not all(map(_stands_still, ranks)):
            time.sleep(0.001)
        try:
            yield ranks
        finally:
            for process in (*ranks, self._agent):
                _signal(process, signal.SIGCONT)

    def kill(self) -> None:
        """`kill -9` of the agent and of everything below it."""
        for process in (self._agent, *self._agent.children(recursive=True)):
            _signal(process, signal.SIGKILL)
        self._child.join()


def _logged(target: Callable[..., None], arguments: tuple[object, ...], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    target(*arguments)


def kill(process: psutil.Process) -> None:
    """`kill -9` of one process."""
    _signal(process, signal.SIGKILL)


def look(process: psutil.Process) -> tuple[str, str]:
    """The phase a frozen rank is in, and the innermost function of this repository on its main thread."""
    command = [str(_SPY), "dump", "--nonblocking", "--json", "--pid", str(process.pid)]
    seen = subprocess.run(command, capture_output=True, text=True, check=False)
    if seen.returncode != 0:
        return _STARTING, "interpreter"  # there is no stack to read yet
    threads = {thread["os_thread_id"]: thread["frames"] for thread in json.loads(seen.stdout)}
    # Methods are named with their class where it can be told.
    frames = [(frame["filename"], frame["name"].rpartition(".")[2]) for frame in threads.get(process.pid, [])]
    own = [(file, name) for file, name in frames if any(part in file for part in _OWN_CODE)]
    where = f"{Path(own[0][0]).name}:{own[0][1]}" if own else "interpreter"
    return next((phase for function, phase in _PHASES if place(function) in own), _STARTING), where


def place(function: Callable[..., object]) -> tuple[str, str]:
    """File and name of a function, as they stand on a stack."""
    code = inspect.unwrap(function).__code__  # type: ignore[attr-defined]
    return code.co_filename, code.co_name


def _stands_still(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
