"""What an installation holds and needs."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from tests.source_code import files, imports, name

PACKAGES = ("optimizers", "peft_pretraining")
CODE = files(*PACKAGES, "torchrun_main.py", "run_glue.py", "run_sft.py")


def declared(root: Path) -> tuple[set[str], set[str]]:
    """Distributions that are always installed, and those of the extras users may add."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = [packages for extra, packages in project["optional-dependencies"].items() if extra not in ("test", "dev")]
    return distributions(project["dependencies"]), {d for extra in extras for d in distributions(extra)}


def distributions(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_import_is_declared(root: Path) -> None:
    required, optional = declared(root)
    owners = packages_distributions()
    undeclared, eager = [], []
    for path in CODE:
        for found in imports(path):
            if not found.third_party:
                continue
            names = {normal(owner) for owner in owners.get(found.top, [found.top])}
            if not names & (required | optional):
                undeclared.append(f"{name(path)}: {found.module}")
            if not names & required and not found.nested and not is_command(path):
                eager.append(f"{name(path)}: {found.module}")
    assert undeclared == []
    assert eager == [], "what is optional is imported where it is used, not with the module"


def is_command(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


def test_what_is_declared_is_used(root: Path) -> None:
    owners = packages_distributions()
    used = {normal(owner) for path in CODE for found in imports(path) for owner in owners.get(found.top, [])}
    implied = {"zstandard"}  # what fsspec opens .zst files with
    assert sorted(declared(root)[0] - used - implied) == []


def test_every_folder_of_code_is_a_package(root: Path) -> None:
    missing = {name(path.parent) for path in files(*PACKAGES) if not (path.parent / "__init__.py").exists()}
    assert missing == set()


IMPORT_ALL = """
import importlib, pkgutil, sys

for absent in ("bitsandbytes", "wandb", "plotly"):
    sys.modules[absent] = None  # an import of it fails as that of a package which is not there
for package in ("optimizers", "peft_pretraining"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(module.name)
import torch
assert not torch.cuda.is_initialized()
"""


def test_everything_imports_without_what_is_optional(root: Path) -> None:
    """The report is a command of its own extra; everything else does without."""
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_a_wheel_holds_all_code_and_data(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(root / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(root / file, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=280)
    (wheel,) = tmp_path.glob("thrift_llama-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - held == set()
    assert not any(entry.startswith("tests/") for entry in held)


def test_license_and_citation_agree_with_the_package(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert project["version"] == citation["version"]
    assert "Apache License\n" in (root / "LICENSE").read_text() and project["license-files"] == ["LICENSE"]
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])


LARGE = 200_000


def test_large_files_are_read_by_a_page_or_a_test(root: Path) -> None:
    """What is generated and only kept makes every clone slower."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    kept = [root / path for path in listed.stdout.split("\0") if path]
    readers = [path.read_text() for path in kept if path.suffix == ".md" or path.name.startswith("test_")]
    unread = [
        name(path)
        for path in kept
        if path.is_file() and path.stat().st_size > LARGE and not path.is_relative_to(root / "tests" / "data")
        if not any(path.name in text for text in readers)
    ]
    assert unread == []


def test_every_console_command_leads_to_a_function(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {f"thrift-{name}" for name in ("train", "sweep", "report", "memory", "generate")}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_module_is_the_script(root: Path) -> None:
    """What torchrun -m starts where a wheel is installed and there is no torchrun_main.py."""
    said = [
        subprocess.run([sys.executable, *words, "--rnak", "8"], cwd=root, capture_output=True, text=True, timeout=120)
        for words in (["torchrun_main.py"], ["-m", "peft_pretraining"])
    ]
    assert [done.returncode for done in said] == [2, 2]
    assert all("unknown flag --rnak; did you mean --rank?" in done.stderr for done in said)
