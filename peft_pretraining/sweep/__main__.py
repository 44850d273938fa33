"""Runs a grid of experiments, or a search for each method's learning rate, from one file.

    python -m peft_pretraining.sweep sweep.yaml

The file (YAML, JSON or TOML) has `flags` that all runs share, `methods` with their own flags, a `grid` that is
crossed with them, `seeds`, and a `search` where each method's learning rate is to be found. A second call goes
on where the first was stopped. Exit status: 0 when all runs are done, 1 when some failed, 2 for a mistake in
the file, 75 when SIGTERM or Ctrl-C stopped it and the runs have saved.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from peft_pretraining.console import reader_may_leave
from peft_pretraining.errors import UsageError
from peft_pretraining.sweep.execution import Execution, Results, command, jobs_of, settings
from peft_pretraining.sweep.file import read_sweep
from peft_pretraining.sweep.plan import Sweep
from peft_pretraining.sweep.slurm import array_script

_STOPPED = 75  # EX_TEMPFAIL, as for a run that was stopped after saving


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        sweep = _chosen(read_sweep(arguments.file), arguments)
        if arguments.slurm is not None:
            return _write_slurm(sweep, arguments.slurm)
        execution = Execution(sweep.cells, sweep.limits)
        done, left = execution.prepare()
        if arguments.dry_run:
            return _show_commands(sweep)
        print(f"{done} runs done, {left} to do, {jobs_of(sweep.limits)} at a time")
        results = execution.run()
        if results.interrupted and arguments.task is not None and not results.progressed:
            print("stopped without a new checkpoint: queued again, this task would repeat itself", file=sys.stderr)
            return 1
        return _tell(sweep, results)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m peft_pretraining.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the sweep: .yaml, .json or .toml")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: limits.jobs, or as the cores allow)")
    parser.add_argument("--threads", type=int, help="threads of each process (default: limits.threads, or 1)")
    parser.add_argument("--task", type=int, help="do only this cell, counted from 0, as a task of a Slurm array does")
    parser.add_argument("--slurm", type=Path, metavar="OUT.sh", help="write a Slurm array script instead of running")
    parser.add_argument("--dry_run", action="store_true", help="check everything and print the commands instead")
    return parser


def _chosen(sweep: Sweep, arguments: argparse.Namespace) -> Sweep:
    given = {name: getattr(arguments, name) for name in ("jobs", "threads") if getattr(arguments, name) is not None}
    for name, value in given.items():
        if value < 1:
            raise UsageError(f"--{name} {value}: give at least 1")
    cells, task = sweep.cells, arguments.task
    if task is not None and arguments.slurm is not None:
        raise UsageError(f"--task {task} is what a task of an array runs; --slurm writes the whole array: drop one")
    if task is not None:
        if not 0 <= task < len(cells):
            raise UsageError(f"--task {task}: {sweep.file} has the cells 0 to {len(cells) - 1}")
        cells = [cells[task]]
    return dataclasses.replace(sweep, cells=cells, limits=dataclasses.replace(sweep.limits, **given))


def _write_slurm(sweep: Sweep, path: Path) -> int:
    try:
        path.write_text(array_script(sweep, Path.cwd()), encoding="utf-8")
        path.chmod(0o755)
    except OSError as error:
        raise UsageError(f"--slurm {path}: cannot be written ({error.strerror}): choose another place") from error
    print(f"{path}: an array of {len(sweep.cells)} tasks; submit it with: sbatch {path}")
    return 0


def _show_commands(sweep: Sweep) -> int:
    with reader_may_leave():
        for index, cell in enumerate(sweep.cells):
            print(f"# cell {index}: {cell.method}, {cell.expected_runs} runs")
            for run in cell.next_runs({}):
                own = [f"{name}={value}" for name, value in settings(sweep.limits, 0).items()]
                print(shlex.join([*own, *command(run, sweep.limits)]))
    return 0


def _tell(sweep: Sweep, results: Results) -> int:
    for cell in sweep.cells:
        verdict = cell.verdict(results.losses)
        if verdict is not None:
            print(verdict)
    for failure in results.failures:
        print(f"{failure.run.name} failed with exit status {failure.status}: {failure.last_words()}", file=sys.stderr)
        print(f"    log: {failure.log}", file=sys.stderr)
    if results.interrupted:
        print("stopped; the same command goes on", file=sys.stderr)
        return _STOPPED
    if results.failures:
        return 1
    print(f"{len(results.losses)} runs done; for a report: python -m peft_pretraining.report {_folder(sweep)}")
    return 0


def _folder(sweep: Sweep) -> Path:
    return sweep.cells[0].folder


if __name__ == "__main__":
    sys.exit(main())
