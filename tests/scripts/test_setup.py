"""The set-up script without Python, on a new machine, and a second time. Only pip is a stand-in."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PIP = """
import os, sys
with open(os.environ["PIP_CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + chr(10))
"""


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Path:
    """A folder with the files that the set-up reads."""
    folder = tmp_path / "check out"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(root / "scripts/setup_env.sh", folder / "scripts")
    shutil.copy(root / "pyproject.toml", folder)
    return folder


def set_up(checkout: Path, *extras: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / "scripts/setup_env.sh"), *extras],
        env={**os.environ, "PIP_CALLS": str(checkout / "calls"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in_for_pip(checkout: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True)
    (packages,) = (checkout / ".venv/lib").glob("python3*/site-packages")
    (packages / "pip").mkdir()
    (packages / "pip/__main__.py").write_text(PIP)


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_without_a_fitting_python_it_says_what_to_install(checkout: Path) -> None:
    done = set_up(checkout, PYTHON="/bin/false")
    assert done.returncode == 1
    assert "3.11" in done.stderr and "apt-get install" in done.stderr and "PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_second_run_installs_nothing(checkout: Path) -> None:
    stand_in_for_pip(checkout)
    assert set_up(checkout, "dev").returncode == 0
    torch, project = calls(checkout)
    assert "torch==" in torch
    assert project.endswith("--editable .[dev]")

    start = time.monotonic()
    assert set_up(checkout, "dev").returncode == 0
    assert set_up(checkout).returncode == 0, "what dev installs holds the rest"
    assert time.monotonic() - start < 10
    assert len(calls(checkout)) == 2


def test_other_requirements_install_again(checkout: Path) -> None:
    stand_in_for_pip(checkout)
    set_up(checkout)
    before = len(calls(checkout))
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert set_up(checkout).returncode == 0
    assert len(calls(checkout)) > before


def test_a_broken_environment_is_made_again(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    done = set_up(checkout, PYTHON="/bin/false")
    assert "Replacing .venv" in done.stderr


def commands(folder: Path, **scripts: str) -> str:
    """PATH with these commands before what is there."""
    folder.mkdir()
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("flag", "here", "cuda"),
    [
        ((), {"sinfo": "echo gpu:a100:8"}, True),
        ((), {"sinfo": "echo '(null)'"}, False),
        ((), {"sinfo": "exit 1", "nvidia-smi": "exit 9"}, False),
        ((), {"sinfo": "exit 1", "nvidia-smi": "exit 0"}, True),
        (("--cpu",), {"sinfo": "echo gpu:8", "nvidia-smi": "exit 0"}, False),
        (("--cuda",), {"sinfo": "exit 1", "nvidia-smi": "exit 9"}, True),
    ],
)
def test_the_build_of_torch(
    checkout: Path, tmp_path: Path, flag: tuple[str, ...], here: dict[str, str], cuda: bool
) -> None:
    """A login node without a GPU belongs to a cluster with some: what Slurm says counts, and a flag more."""
    stand_in_for_pip(checkout)
    done = set_up(checkout, *flag, "dev", PATH=commands(tmp_path / "bin", **here), NVIDIA_DRIVER="/nowhere")
    assert done.returncode == 0, done.stderr
    assert ("with CUDA" in done.stderr) == cuda
    assert ("--no-index" in calls(checkout)[0]) != cuda


def test_a_login_node_that_cannot_be_judged_asks(checkout: Path, tmp_path: Path) -> None:
    stand_in_for_pip(checkout)
    path = commands(tmp_path / "bin", qsub="exit 0", sinfo="exit 1", **{"nvidia-smi": "exit 9"})
    done = set_up(checkout, PATH=path, NVIDIA_DRIVER="/nowhere")
    assert done.returncode == 2 and "--cuda or --cpu" in done.stderr and calls(checkout) == []
    assert set_up(checkout, "--gpu").returncode == 2


@pytest.mark.parametrize("folder", ["scripts", ".ci"])
def test_scripts_parse(root: Path, folder: str) -> None:
    scripts = [path for path in (root / folder).rglob("*") if path.suffix == ".sh" or path.name == "run"]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert script.read_text().startswith("#!/usr/bin/env bash\n"), script
