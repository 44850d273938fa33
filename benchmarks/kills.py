"""Kills real runs with `kill -9` at random moments and counts what is lost, doubled or wrong afterwards.

    python -m benchmarks.kills [--kills 20] [--only ldadamw:2]

For each family of methods, on one and on two processes under torchrun: a tiny model is trained without interruption,
and again with a rank, all ranks, or the whole job killed. Torchrun restarts dead ranks itself (--max_restarts); a dead
torchrun is started again by the same command (--continue_from auto). Before a kill all processes are frozen, and
py-spy reads what the victim is doing, so that the kill falls into the phase it is meant for: an update, a refill of
the data, an evaluation, the writing of a checkpoint, a start. While they stand still, every checkpoint that a restart
could choose must be whole and hold the uninterrupted run's bytes. At the end the metrics must be the uninterrupted
run's, line by line and bit for bit but for timings. The uninterrupted run is started by torchrun's command line; to
spare importing torch 300 times, the killed ones are started by torchrun's agent in processes forked from this one,
unless --command_line is given. Cells that are done are kept in the folder. Writes benchmarks/results/kills.json; exit
status 1 after any mismatch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import peft_pretraining.data.records  # noqa: F401  (ranks import it late, and every one again)
import torchrun_main
from benchmarks.common import ROOT, write_result
from benchmarks.frozen import Job, kill, look
from peft_pretraining.run_folder.layout import METRICS, RunFolder
from peft_pretraining.run_folder.manifest import DamagedCheckpoint, verify
from tests.tiny_runs import command, environment, records

FAMILIES = {
    "adamw_sn": [],
    "galore_adamw": ["--rank", "8", "--proj_type", "continuous"],
    "adam_mini": [],
    "sgd_boost": [],
    "ldadamw": ["--rank", "8"],
}
PHASES = ("update", "data refill", "evaluation", "checkpoint", "start")
UPDATES, EVAL_EVERY, SAVE_EVERY = 220, 4, 5
LAST_TARGET = UPDATES - 40  # so that every kill finds its phase before the run is done
SPREAD = 20  # updates within which the wanted phase is waited for
START_SECONDS = 3.0
CONTINUED = re.compile(r"continuing from \S*model_(\d+), update (\d+) of")
OPENED = "which parameter is updated how"  # said when a run has opened its metrics to go on with them
RESTARTS = 1000
Event = dict[str, Any]


class Cell:
    """A method on a number of processes: its uninterrupted run, its killed run, and what happened."""

    def __init__(self, family: str, processes: int, options: argparse.Namespace) -> None:
        self.family, self.processes, self.kills, self.options = family, processes, options.kills, options
        self.folder = options.folder / f"{family}-{processes}"
        self.killed, self.whole = RunFolder(self.folder / "killed"), RunFolder(self.folder / "whole")
        self.log = self.folder / "log"
        self.random = random.Random(f"{family} {processes}")
        self.job: Job | None = None
        self.events: list[Event] = []

    def run(self) -> Event:
        """The cell's result, from its folder if it is there already."""
        result = self.folder / "result.json"
        if result.exists():
            return json.loads(result.read_text())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        started = time.monotonic()
        whole = self._command(self.whole, "--keep_checkpoints", "1000")
        done = subprocess.run(whole, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"the uninterrupted run failed:\n{done.stderr[-3000:]}")
        for target, phase, mode in self._plan():
            self._strike(target, phase, mode)
            print(f"{self.folder.name}: {self.events[-1]}", flush=True)
        self._start()
        assert self.job is not None
        while (status := self.job.poll()) is None:
            time.sleep(0.1)
        found = {**self._outcome(status), "seconds": round(time.monotonic() - started), "events": self.events}
        result.write_text(json.dumps(found, indent=1))
        return found

    def _command(self, folder: RunFolder, *more: str) -> list[str]:
        flags = ["--optimizer", self.family, "--lr", "1e-3", *FAMILIES[self.family], "--continue_from", "auto"]
        flags += ["--eval_every", str(EVAL_EVERY), "--save_every", str(SAVE_EVERY), "--shuffle_block", "4"]
        flags += ["--eval_tokens", "500", *shlex.split(self.options.flags), *more]
        return command(folder.path, *flags, processes=self.processes, updates=UPDATES)

    def _plan(self) -> list[tuple[int, str, str]]:
        """Update, phase and mode of every kill, in order."""
        targets = sorted(self.random.sample(range(1, LAST_TARGET), self.kills))
        phases = [PHASES[index % len(PHASES)] for index in range(self.kills)]
        self.random.shuffle(phases)
        modes = ("rank", "job") if self.processes == 1 else ("rank", "rank", "all ranks", "job")
        return [(target, phase, self.random.choice(modes)) for target, phase in zip(targets, phases, strict=True)]

    def _start(self) -> None:
        words = self._command(self.killed, "--keep_checkpoints", "2")
        script = next(index for index, word in enumerate(words) if word.endswith("torchrun_main.py"))
        if self.job is None and self.options.command_line:
            words.insert(words.index("--standalone"), f"--max_restarts={RESTARTS}")
            self.job = Job(os.execvpe, (words[0], words, environment()), self.log)
        elif self.job is None:
            self.job = Job(_agent, (words[script + 1 :], self.processes), self.log)

    def _strike(self, target: int, phase: str, mode: str) -> None:
        """Kills once, in `phase` if it comes about soon after update `target`."""
        self._start()
        assert self.job is not None
        if phase == "start":
            time.sleep(self.random.uniform(0, START_SECONDS))
        else:
            self._wait_for(target)
        while True:
            if phase != "start":
                self._wait_near(phase)
            with self.job.frozen() as ranks:
                if self.job.poll() is not None:
                    raise SystemExit(f"the job ended before its kill: see {self.log}")
                if not ranks:
                    continue
                victim = self.random.randrange(len(ranks))
                seen, where = look(ranks[victim])
                if phase not in (seen, "start") and self._updates() < target + SPREAD:
                    continue
                event = {"wanted": phase, "phase": seen, "where": where, "mode": mode, "rank": victim}
                self.events.append({**event, "update": self._updates(), **self._inspect()})
                for process in ranks if mode != "rank" else [ranks[victim]]:
                    kill(process)
                if mode == "job":
                    self.job.kill()
            break
        self.job = None if mode == "job" else self.job

    def _wait_for(self, target: int) -> None:
        """Until the job that runs now, not one before it, has made update `target`."""
        before = self.events[-1]["opened"] if self.events else 0
        while self._log().count(OPENED) <= before or self._updates() < target:
            if self.job is not None and self.job.poll() is not None:
                raise SystemExit(f"the job ended with status {self.job.poll()}: see {self.log}")
            time.sleep(0.02)

    def _wait_near(self, phase: str) -> None:
        """Until the run folder looks like `phase`, and then a random moment."""
        until = time.monotonic() + 2
        while time.monotonic() < until and not self._looks_like(phase):
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.1))

    def _looks_like(self, phase: str) -> bool:
        if phase == "checkpoint":
            return any(self.killed.path.glob(".model_*"))
        if phase == "evaluation":
            last = self._lines()[-1:]
            return bool(last) and b'"loss"' in last[0] and json.loads(last[0])["update_step"] % EVAL_EVERY == 0
        return True

    def _lines(self) -> list[bytes]:
        metrics = self.killed.path / METRICS
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        return [line for line in lines if line.endswith(b"\n")]

    def _updates(self) -> int:
        return sum(b'"loss"' in line for line in self._lines())

    def _log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _inspect(self) -> Event:
        """What a restart would find: half checkpoints, and the newest whole one; what the last restart chose."""
        half, other, newest = [], [], 0
        for update, path in self.killed.checkpoints():
            try:
                verify(path)
                newest = max(newest, update)
            except DamagedCheckpoint as error:
                half.append(f"{path.name}: {error}")
            other += [name for name in _differing(path, self.whole.checkpoint(update))]
        opened, restarts = self._log().count(OPENED), self._restarts()
        return {"half": half, "other": other, "newest": newest, "opened": opened, "restarts": restarts}

    def _restarts(self) -> list[int]:
        """The update that every restart so far went on from; those that found no checkpoint are not in it."""
        return [int(match[2]) for match in CONTINUED.finditer(self._log()) if match[1] == match[2]]

    def _wrong_choices(self) -> int:
        """Restarts from another checkpoint than the newest whole one that was seen before them.

        After the death of one of two ranks the other may still finish a checkpoint.
        """
        wrong = 0
        ends = [*(len(event["restarts"]) for event in self.events[1:]), None]
        for event, end in zip(self.events, ends, strict=True):
            possible = {event["newest"]} | ({event["newest"] + SAVE_EVERY} if event["mode"] == "rank" else set())
            chosen = self._restarts()[len(event["restarts"]) : end]
            wrong += sum(update not in possible for update in chosen)
        return wrong

    def _outcome(self, status: int) -> Event:
        whole, killed = records(self.whole.path), records(self.killed.path)
        keys = [[(line["update_step"], "loss" in line) for line in lines] for lines in (whole, killed)]
        wrong = {
            "status": status,
            "missing_lines": len(set(keys[0]) - set(keys[1])),
            "doubled_lines": len(keys[1]) - len(set(keys[1])),
            "other_lines": sum(a != b for a, b in zip(whole, killed, strict=False)) + abs(len(whole) - len(killed)),
            "half_checkpoints": sum(len(event["half"]) for event in self.events),
            "other_checkpoints": sum(len(event["other"]) for event in self.events)
            + len(_differing(self.killed.checkpoint(UPDATES), self.whole.checkpoint(UPDATES))),
            "wrong_choices": self._wrong_choices(),
        }
        phases, modes = (dict(Counter(event[name] for event in self.events)) for name in ("phase", "mode"))
        facts = {"optimizer": self.family, "processes": self.processes, "kills": len(self.events), "lines": len(killed)}
        return {**facts, "phases": phases, "modes": modes, "restarts": len(self._restarts()), "wrong": wrong}


def _agent(arguments: list[str], processes: int) -> None:
    """What `torchrun --standalone --max_restarts` does, with ranks that are forked."""
    os.environ.update(environment())
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    config = LaunchConfig(1, 1, processes, max_restarts=RESTARTS, start_method="fork", **rendezvous)
    elastic_launch(config, _rank)(arguments)


def _rank(arguments: list[str]) -> None:
    if status := torchrun_main.main(arguments):
        sys.exit(status)


def _differing(checkpoint: Path, whole: Path) -> list[str]:
    """Weights and state files of a checkpoint that do not hold, bit for bit, what the uninterrupted run's hold."""
    names = {path.relative_to(root) for root in (checkpoint, whole) for path in root.rglob("*.safetensors")}
    return [
        f"{checkpoint.name}/{name}"
        for name in sorted(names)
        if _content(checkpoint / name) is None or _content(checkpoint / name) != _content(whole / name)
    ]


def _content(path: Path) -> tuple[Any, bytes] | None:
    """What a safetensors file lists, in whatever order, and the bytes of its tensors."""
    if not path.exists():
        return None
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def report(cells: list[Event], name: str, flags: str) -> Event:
    """Sums over the cells, written to the results file."""
    total: Event = {"runs": len(cells), "kills": sum(cell["kills"] for cell in cells)}
    total["mismatches"] = sum(sum(cell["wrong"].values()) for cell in cells)
    total["phases"] = dict(sum((Counter(cell["phases"]) for cell in cells), Counter()))
    total["modes"] = dict(sum((Counter(cell["modes"]) for cell in cells), Counter()))
    total["places"] = dict(Counter(event["where"] for cell in cells for event in cell["events"]).most_common())
    kept = [{name: value for name, value in cell.items() if name != "events"} for cell in cells]
    write_result(name, {**total, "updates": UPDATES, "flags": flags, "cells": kept})
    return total


def main() -> int:
    """Runs the cells that are not done; prints runs, kills and mismatches. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each method on each number of processes")
    parser.add_argument("--only", nargs="*", help="cells as METHOD:PROCESSES (default: all)")
    parser.add_argument("--command_line", action="store_true", help="start every process with a new interpreter")
    parser.add_argument("--flags", default="", help="more flags of every run, as '--async_save true'")
    parser.add_argument("--name", default="kills", help="names the file under benchmarks/results")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "kills", help="where cells are kept")
    arguments = parser.parse_args()
    names = arguments.only or [f"{family}:{processes}" for family in FAMILIES for processes in (1, 2)]
    done: list[Event] = []
    for name in names:
        family, _, processes = name.partition(":")
        done.append(Cell(family, int(processes), arguments).run())
        total = report(done, arguments.name, arguments.flags)
        print(json.dumps({k: done[-1][k] for k in ("optimizer", "processes", "kills", "phases", "wrong")}), flush=True)
    print(f"{total['runs']} runs, {total['kills']} kills, {total['mismatches']} mismatches")
    return 1 if total["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
