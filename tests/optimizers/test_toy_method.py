"""docs/adding_an_optimizer.md: its file trains through the command line, resumes, and passes the tests it advises."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, command, environment, losses

DOCUMENT = ROOT / "docs" / "adding_an_optimizer.md"
_BLOCK = re.compile(r"^```(?:python )?(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[str]:
    """The pieces of code that the document marks with a file's name (or as sh), in order."""
    return [code for found, code in _BLOCK.findall(DOCUMENT.read_text(encoding="utf-8")) if found == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the document's two files."""
    made = tmp_path_factory.mktemp("toy")
    for name in ("toy.py", "test_toy.py"):
        (made / name).write_text("\n\n".join(blocks(name)), encoding="utf-8")
    return made


def run(words: list[str], folder: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def own_flags() -> list[str]:
    """The document's command without what stands for a larger run: model, data and length."""
    (text,) = blocks("sh")
    words = shlex.split(text.replace("\\\n", " "))
    assert words[:3] == ["python", "torchrun_main.py", "--single_gpu"]
    return words[3 : words.index("--model_config")]


def test_it_trains_and_resumes_through_the_command_line(folder: Path) -> None:
    flags = own_flags()
    assert flags[:4] == ["--optimizer_file", "toy.py", "--optimizer", "toy"]
    run(command("run", *flags, "--eval_every", "10", "--save_every", "2", updates=3), folder)
    whole = losses(folder / "run")
    saved = json.loads((folder / "run" / "run.json").read_text())
    assert (saved["optimizer"]["optimizer"], saved["optimizer"]["norm_decay"]) == ("toy", 0.95)
    assert len(whole) == 3 and all(loss > 0 for loss in whole)
    resumed = ["--eval_every", "10", "--save_every", "2", "--continue_from", "run/model_2"]
    run(command("again", *flags, *resumed, updates=3), folder)
    assert losses(folder / "again")[-1] == whole[-1]


def test_help_shows_its_flags(folder: Path) -> None:
    words = [sys.executable, str(ROOT / "torchrun_main.py"), "--optimizer_file", "toy.py", "--help"]
    text = " ".join(run(words, folder).split())
    assert "hyperparameters of toy:" in text and "--momentum X decay of the momentum of matrices (default 0.9)" in text
    assert "--norm_decay X decay of the mean of row norms (default 0.9)" in text


def test_it_passes_the_tests_that_the_document_advises(folder: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    assert "5 passed" in run([*words, "--rootdir", str(folder), "test_toy.py"], folder)
