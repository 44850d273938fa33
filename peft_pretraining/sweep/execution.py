"""Running a sweep: several processes at a time within the limits, one display, nothing done twice."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from peft_pretraining.atomic_write import write_atomically
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import LABEL, LOG, RunFolder
from peft_pretraining.sweep.outcome import outcome_of, updates_done
from peft_pretraining.sweep.plan import Cell, Limits, RunSpec
from peft_pretraining.training.run_config import RunConfig

MAIN = Path(__file__).resolve().parents[2] / "torchrun_main.py"
_POLL_SECONDS = 0.5


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def jobs_of(limits: Limits) -> int:
    """Runs side by side. Raises UsageError where they would need more cores than there are."""
    each, cores = limits.processes * limits.threads, usable_cores()
    jobs = limits.jobs or max(1, cores // each)
    if jobs * each > cores:
        raise UsageError(
            f"--jobs {jobs} x {limits.processes} processes x --threads {limits.threads} = {jobs * each}, but there are "
            f"{cores} cores: lower one of them"
        )
    return jobs


def command(run: RunSpec, limits: Limits) -> list[str]:
    """The words that start a run, or go on with it."""
    main = [str(MAIN)] if MAIN.exists() else ["-m", "peft_pretraining"]  # an installed wheel has no script beside it
    if limits.processes == 1:
        start = [sys.executable, *main, "--single_gpu"]
    else:
        launcher = ["-m", "peft_pretraining.launch", "--standalone", f"--nproc_per_node={limits.processes}"]
        start = [sys.executable, *launcher, *main]
    return [*start, *run.arguments(), f"--name={run.name}", f"--save_dir={run.folder}", "--continue_from=auto"]


def environment(limits: Limits, slot: int) -> dict[str, str]:
    """The environment of the run in this slot: its threads and its share of the GPUs."""
    return {**os.environ, **settings(limits, slot)}


def settings(limits: Limits, slot: int) -> dict[str, str]:
    """What of that is to be typed before the command to start the run by hand."""
    own = {"OMP_NUM_THREADS": str(limits.threads)}
    if limits.gpus:
        first = slot * limits.processes
        own["CUDA_VISIBLE_DEVICES"] = ",".join(
            str(limits.gpus[(first + index) % len(limits.gpus)]) for index in range(limits.processes)
        )
    return own


def configuration(run: RunSpec, limits: Limits) -> RunConfig:
    """The run's checked configuration. Raises UsageError naming the run."""
    try:
        return parse_config(run.arguments(), world_size=limits.processes)
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from error


@dataclass
class Failure:
    """A run that ended badly. status: its exit status."""

    run: RunSpec
    status: int

    @property
    def log(self) -> Path:
        return self.run.folder / LOG

    def last_words(self) -> str:
        """The last error in the log, or its last line."""
        lines = [line for line in self.log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "Error" in line]
        return (errors or lines or ["(the log is empty)"])[-1].strip()


@dataclass
class Results:
    """losses: final evaluation loss of every finished run, by name. failures: what ended badly this time.

    progressed: whether a run has finished or saved a newer checkpoint this time.
    """

    losses: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    progressed: bool = False


@dataclass
class _Job:
    run: RunSpec
    config: RunConfig
    process: subprocess.Popen[bytes]
    seen: int


class Execution:
    """Runs cells to their end. `run` may be called once."""

    def __init__(self, cells: Sequence[Cell], limits: Limits) -> None:
        self._cells, self._limits, self._jobs = cells, limits, jobs_of(limits)
        self._configs: dict[str, RunConfig] = {}
        self._running: dict[int, _Job] = {}
        self._unfinished: set[str] = set()
        self._results = Results()
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, int] = {}

    def prepare(self) -> tuple[int, int]:
        """Checks every run that is known by now, and reads what is done. Returns runs done and to do."""
        self._look_up_known()
        return len(self._results.losses), sum(cell.expected_runs for cell in self._cells) - len(self._results.losses)

    def run(self) -> Results:
        """Starts and watches runs until nothing is left to do. After SIGINT or SIGTERM the runs save and end."""
        total = sum(cell.expected_runs * self._updates(cell) for cell in self._cells)
        done = sum(self._configs[name].training.num_training_steps for name in self._results.losses)
        before, finished = self._newest_checkpoints(), len(self._results.losses)
        with _interruptible(), self._open_bar(total, done) as self._bar:
            try:
                while self._advance():
                    time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                self._stop()
        newer = any(update > before.get(name, 0) for name, update in self._newest_checkpoints().items())
        self._results.progressed = newer or len(self._results.losses) > finished
        return self._results

    @staticmethod
    def _open_bar(total: int, done: int) -> "tqdm[Any]":
        """A bar for terminals; `_show` writes lines where there is none."""
        return tqdm(total=total, initial=done, unit="update", dynamic_ncols=True, disable=None)

    def _newest_checkpoints(self) -> dict[str, int]:
        """The update of the newest checkpoint of every run that is known and has one."""
        saved = {run.name: RunFolder(run.folder).checkpoints() for run in self._known()}
        return {name: checkpoints[0][0] for name, checkpoints in saved.items() if checkpoints}

    def _advance(self) -> bool:
        """One look at everything. Returns whether anything runs."""
        for slot, job in list(self._running.items()):
            self._count(job)
            if job.process.poll() is not None:
                del self._running[slot]
                self._finish(job)
        self._look_up_known()
        failed = {failure.run.name for failure in self._results.failures}
        running = {job.run.name for job in self._running.values()}
        for run in self._known():
            if len(self._running) == self._jobs:
                break
            if run.name in self._unfinished - failed - running:
                self._start(run)
        self._show()
        return bool(self._running)

    def _known(self) -> list[RunSpec]:
        return [run for cell in self._cells for run in cell.next_runs(self._results.losses)]

    def _look_up_known(self) -> None:
        """Reads what is done; what a finished run leads to may be done as well."""
        before = -1
        while before < len(self._results.losses):
            before = len(self._results.losses)
            for run in self._known():
                if run.name not in self._unfinished:
                    self._look_up(run)

    def _look_up(self, run: RunSpec) -> bool:
        """Whether the run is finished, by its folder; notes it either way."""
        if run.name in self._results.losses:
            return True
        if run.name not in self._configs:
            self._configs[run.name] = configuration(run, self._limits)
        outcome = outcome_of(run.folder, self._configs[run.name])
        if outcome.loss is not None:
            self._results.losses[run.name] = outcome.loss
            self._unfinished.discard(run.name)
        else:
            self._unfinished.add(run.name)
        return outcome.finished

    def _start(self, run: RunSpec) -> None:
        slot = next(index for index in range(self._jobs) if index not in self._running)
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / LABEL, json.dumps({"method": run.method}) + "\n")
        with open(run.folder / LOG, "ab") as log:
            # A session of its own: Ctrl-C reaches the sweep alone, which then asks every run to save and end.
            process = subprocess.Popen(
                command(run, self._limits),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(self._limits, slot),
                start_new_session=True,
            )
        self._running[slot] = _Job(run, self._configs[run.name], process, 0)

    def _finish(self, job: _Job) -> None:
        status = job.process.returncode
        if not self._look_up(job.run):
            self._results.failures.append(Failure(job.run, status))
            tqdm.write(f"failed: {job.run.name} (exit status {status}), log {job.run.folder / LOG}", file=sys.stderr)
        elif math.isinf(self._results.losses[job.run.name]):
            tqdm.write(f"diverged: {job.run.name}", file=sys.stderr)

    def _stop(self) -> None:
        """Asks every run to save and end, and waits for it."""
        self._results.interrupted = True
        for job in self._running.values():
            job.process.send_signal(signal.SIGTERM)
        for job in self._running.values():
            job.process.wait()
            self._look_up(job.run)

    def _count(self, job: _Job) -> None:
        """Adds the updates since the last look to the bar."""
        assert self._bar is not None
        done = updates_done(job.run.folder)
        self._bar.update(max(0, done - job.seen))
        job.seen = max(done, job.seen)

    def _show(self) -> None:
        assert self._bar is not None
        shown = {"done": len(self._results.losses), "running": len(self._running)}
        if self._results.failures:
            shown["failed"] = len(self._results.failures)
        if not self._bar.disable:
            self._bar.set_postfix(shown)
        elif shown != self._shown:
            self._shown = shown
            sys.stderr.write(", ".join(f"{count} {name}" for name, count in shown.items()) + "\n")

    def _updates(self, cell: Cell) -> int:
        first = cell.next_runs({})[0]
        self._look_up(first)
        return self._configs[first.name].training.num_training_steps


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
