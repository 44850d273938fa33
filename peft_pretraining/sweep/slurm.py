"""Slurm array scripts: one task a cell of the sweep, requeued where a run was stopped after saving."""

import shlex
import sys
from pathlib import Path
from typing import Any

from peft_pretraining.sweep.plan import Sweep

_SCRIPT = """\
#!/usr/bin/env bash
{options}

# Task N of the array does cell N of {file}: a run, or the whole search of a method. A task that is stopped before its
# time runs out has its runs save, and is queued again unless it has saved nothing new; what is done is skipped.
cd {root}
{python} -m peft_pretraining.sweep {file} --task "$SLURM_ARRAY_TASK_ID" --jobs 1 --threads {threads} &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
wait "$sweep"
status=$?
trap - TERM
if kill -0 "$sweep" 2>/dev/null; then
    wait "$sweep"
    status=$?
fi
if [[ "$status" == 75 ]]; then
    echo "task $SLURM_ARRAY_TASK_ID stopped, queued again"
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def array_script(sweep: Sweep, root: Path) -> str:
    """The text of the script. root: where the sweep's file and folder are relative to.

    Options of sbatch come from the file's `slurm` section and win over the ones chosen here.
    """
    jobs = f"%{sweep.limits.jobs}" if sweep.limits.jobs else ""
    options: dict[str, Any] = {
        "job-name": sweep.file.stem,
        "array": f"0-{len(sweep.cells) - 1}{jobs}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": sweep.limits.processes * sweep.limits.threads,
        "output": "slurm-%A_%a.log",
        "open-mode": "append",
        "signal": "B:TERM@300",
        "requeue": True,
        **{str(name).replace("_", "-"): value for name, value in sweep.slurm.items()},
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is True else f"={value}")
        for name, value in options.items()
        if value is not False
    ]
    return _SCRIPT.format(
        options="\n".join(lines),
        file=shlex.quote(str(sweep.file)),
        root=shlex.quote(str(root)),
        python=shlex.quote(sys.executable),
        threads=sweep.limits.threads,
    )
