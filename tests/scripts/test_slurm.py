"""scripts/slurm/pretrain.sh and a sweep's array: under a real Slurm where there is one, and what needs none."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peft_pretraining.cli.parse import parse_config
from tests import tiny_runs
from tests.scripts import slurm_cluster

ROOT = tiny_runs.ROOT
SLURM = ROOT / "scripts/slurm/pretrain.sh"
real = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "there is one")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository without a .venv, under a name with a space."""
    folder = tmp_path / "check out"
    folder.mkdir()
    for name in ("torchrun_main.py", "peft_pretraining", "optimizers", "configs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def flags(folder: Path | str, *more: str, updates: int) -> list[str]:
    return tiny_runs.flags(folder, "--save_every", "1000", *more, updates=updates)


def log_of(folder: Path, job: str) -> str:
    path = folder / f"slurm-{job}.log"
    return path.read_text() if path.exists() else ""


def updates_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


@real
def test_three_allocations_are_one_run(cluster: slurm_cluster.Cluster, checkout: Path, tmp_path: Path) -> None:
    """From another folder, without .venv: at the end of its time the job saves, is queued again and goes on."""
    elsewhere, run, updates = tmp_path / "elsewhere", checkout / "runs/three", 20000
    elsewhere.mkdir()
    (elsewhere / "python").symlink_to(sys.executable)
    words = flags("unused", "--eval_every", "20000", updates=updates)
    at = words.index("--save_dir")
    words[at : at + 2] = ["--name", "three"]
    job = cluster.submit(
        "--gpus-per-node=1",
        "--cpus-per-task=1",
        str(checkout / "scripts/slurm/pretrain.sh"),
        *words,
        cwd=elsewhere,
        PATH=f"{elsewhere}:{cluster.environment['PATH']}",
        PYTHONPATH=os.pathsep.join(path for path in sys.path if "site-packages" in path),
    )
    done = [0]
    for restarts in (1, 2):
        cluster.wait(lambda: updates_of(run) > done[-1] + 5)
        cluster.time_is_up(job)
        cluster.start_again(job, restarts)
        done.append(int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["update_step"]))
        assert (run / f"model_{done[-1]}").is_dir()
        assert f"stopped at update {done[-1]}, queued again" in log_of(elsewhere, job)
    cluster.wait(lambda: updates_of(run) > done[-1] + 5)
    cluster.run("scancel", job)
    log = log_of(elsewhere, job)
    assert log.count("continuing from") == 2 and "Traceback" not in log
    lines = [line["update_step"] for line in tiny_runs.records(run) if "loss" in line]
    assert lines == list(range(1, len(lines) + 1)), "none is lost and none is made twice"


@real
@pytest.mark.slow
def test_a_published_script_ends_as_it_ends_alone(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    """From the repository with its .venv, if it has one; two processes of one node."""
    run = tmp_path / "run"
    job = cluster.submit(
        "--gpus-per-node=2",
        "--cpus-per-task=2",
        f"--output={tmp_path}/slurm-%j.log",
        str(SLURM),
        "--",
        "scripts/benchmark_c4/rmsprop_sn/llama_60m.sh",
        *flags(run, "--optimizer", "adamw_sn", updates=3),
        cwd=ROOT,
        **({} if (ROOT / ".venv/bin/python").exists() else {"PYTHON": sys.executable}),
    )
    cluster.wait(lambda: cluster.state(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert cluster.state(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    config = json.loads((run / "run.json").read_text())
    assert config["optimizer"]["beta1"] == 0.0 and config["training"]["gradient_accumulation"] == 1
    assert (run / "summary.json").exists()


@real
def test_what_saves_nothing_is_not_queued_for_ever(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/bash\necho ready\ntrap 'exit 75' USR1\nwhile :; do sleep 0.1; done\n")
    fake.chmod(0o755)
    words = ["--gpus-per-node=1", "--cpus-per-task=1", str(SLURM), "--save_dir", str(tmp_path / "run")]
    job = cluster.submit(*words, cwd=tmp_path, PYTHON=str(fake))
    cluster.wait(lambda: "ready" in log_of(tmp_path, job))
    cluster.time_is_up(job)
    cluster.wait(lambda: cluster.state(job)["JobState"] == "FAILED")
    assert cluster.state(job)["Restarts"] == "0"
    assert "stopped at update 0" in log_of(tmp_path, job) and "not queued again" in log_of(tmp_path, job)


@real
@pytest.mark.slow
def test_a_sweep_s_task_is_queued_again_after_it_saved(cluster: slurm_cluster.Cluster, tmp_path: Path) -> None:
    own = dict(zip(*[iter(flags("unused", updates=20000))] * 2, strict=True))
    methods = {"adamw": {"lr": [0.01]}}
    shared = {key.removeprefix("--"): value for key, value in own.items() if key not in ("--save_dir", "--optimizer")}
    del shared["lr"]
    content = {"folder": str(tmp_path / "runs"), "flags": shared, "methods": methods, "slurm": {"cpus_per_task": 1}}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    words = [sys.executable, "-m", "peft_pretraining.sweep", str(tmp_path / "sweep.json"), "--slurm"]
    subprocess.run([*words, "array.sh"], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    job = cluster.submit("array.sh", cwd=tmp_path, PYTHONPATH=str(ROOT)) + "_0"

    def runs() -> list[Path]:
        return list((tmp_path / "runs").glob("*/metrics.jsonl"))

    cluster.wait(lambda: any(updates_of(path.parent) > 5 for path in runs()))
    cluster.time_is_up(job)
    cluster.start_again(job, 1)
    assert len(list((tmp_path / "runs").glob("*/model_*"))) == 1
    cluster.run("scancel", job)


STAND_IN = """#!{python}
import os, signal, sys, time
calls = open(os.environ["CALLS"], "a")
print(os.path.basename(sys.argv[0]), *sys.argv[1:], file=calls, flush=True)
if os.path.basename(sys.argv[0]) == "srun":
    # As the real one: SIGTERM kills its tasks at once, SIGUSR1 is handed on to them.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(137))
    signal.signal(signal.SIGUSR1, lambda *_: (os.makedirs("{run}/model_7"), os._exit(75)))
    print("ready", file=calls, flush=True)
    time.sleep(20)
"""


def test_a_job_that_is_stopped_saves_and_is_queued_again(tmp_path: Path) -> None:
    run, calls = tmp_path / "run", tmp_path / "calls"
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(STAND_IN.format(python=sys.executable, run=run))
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "SLURM_JOB_ID": "41"}
    words = ["bash", str(SLURM), "--save_dir", str(run)]
    job = subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while "ready" not in (calls.read_text() if calls.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)
    job.terminate()
    said, _ = job.communicate(timeout=20)
    assert said == "stopped at update 7, queued again\n"
    lines = calls.read_text().splitlines()
    assert any(line.startswith("srun") and f"--continue_from auto --save_dir {run}" in line for line in lines)
    assert lines[-1] == "scontrol requeue 41"


def dry_run(*words: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "DRY_RUN": "1", **environment}
    return subprocess.run(["bash", *words], cwd=cwd, capture_output=True, text=True, timeout=20, env=env)


@pytest.mark.parametrize(
    ("typed", "status"),
    [
        ("--lr 1", 2),
        ("--save_directory x", 2),
        ("--save_dir x", 0),
        ("--save_dir=x", 0),
        ("--save-dir x", 0),
        ("--lr 1 --name=x", 0),
        ("-- scripts/benchmark_c4/adamw/llama_60m.sh", 2),
        ("-- scripts/benchmark_c4/adamw/llama_60m.sh --name x", 0),
        ("-- scripts/benchmark_c4/adamw/llama_61m.sh --name x", 2),
    ],
)
def test_a_job_needs_a_folder_to_come_back_to(typed: str, status: int) -> None:
    done = dry_run(str(SLURM), *typed.split())
    assert done.returncode == status and bool(done.stderr) == (status == 2), done.stderr


@pytest.mark.parametrize("recipe", ["benchmark_c4/galore/llama_130m.sh", "single_gpu/llama_7b_galore.sh"])
def test_a_job_runs_what_the_published_script_runs(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    more = ("--name", "two words")
    nodes = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"} if "c4" in recipe else {}
    words = shlex.split(dry_run(str(SLURM), "--", f"scripts/{recipe}", *more, cwd=tmp_path, **nodes).stdout)
    alone = shlex.split(dry_run(str(ROOT / "scripts" / recipe), *more, NPROC="8").stdout)
    processes = 8 if nodes else 1
    assert ("peft_pretraining.launch" in words) == (processes == 8)
    mine, own = (
        parse_config(command[command.index("torchrun_main.py") + 1 :], world_size=processes).to_dict()
        for command in (words, alone)
    )
    assert mine.pop("checkpoint")["continue_from"] == "auto" and own.pop("checkpoint")
    assert mine == own


def test_the_interpreter_is_that_of_the_checkout_or_of_the_shell(checkout: Path) -> None:
    script = checkout / "scripts/slurm/pretrain.sh"
    assert shlex.split(dry_run(str(script), "--name", "x").stdout)[1] == "python"
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    assert shlex.split(dry_run(str(script), "--name", "x").stdout)[1] == ".venv/bin/python"
