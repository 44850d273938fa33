"""README and docs: links lead somewhere, every page is reached, and the flags that they name exist."""

import re
from pathlib import Path

import pytest

from peft_pretraining.cli.parse import shared_parser
from peft_pretraining.flags.catalogue import catalogue
from tests.source_code import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
OF_OTHER_PROGRAMS = {"nnodes", "max_restarts", "signal", "include_path"}
"""Flags of torchrun, sbatch and lm_eval."""
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FLAG = re.compile(r"`--(?:no_)?([A-Za-z]\w*)")
_DECLARED = re.compile(
    r"""add_argument\(\s*(?:"-\w",\s*)?"--(\w+)"|^    (\w+): .*= flag\(|"--(\w+)": ["[]""", re.MULTILINE
)


def relative_links(page: Path) -> list[str]:
    return [target for target in _LINK.findall(page.read_text()) if "://" not in target and ":" not in target]


def known_flags() -> set[str]:
    """Of the training command, of every method, and of the other commands as their sources declare them."""
    known = set(shared_parser().flags) | {name for method in catalogue() for name in method.flags}
    sources = [*(ROOT / "peft_pretraining").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    sources += [ROOT / "run_glue.py", ROOT / "run_sft.py", ROOT / "tests" / "conftest.py"]
    for source in sources:
        known |= {name for names in _DECLARED.findall(source.read_text()) for name in names if name}
    for script in (ROOT / "scripts").rglob("*.sh"):
        for options in re.findall(r"^\s*(--\w+(?: \| --\w+)*)\)", script.read_text(), re.MULTILINE):
            known |= set(re.findall(r"\w+", options))
    return {name.lstrip("-") for name in known}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    broken = [target for target in relative_links(page) if not (page.parent / target).exists()]
    assert not broken


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target in relative_links(README)}
    assert not [page.name for page in PAGES[1:] if page.resolve() not in linked]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_in_the_text_exist(page: Path) -> None:
    named = set(_FLAG.findall(page.read_text()))
    assert not named - known_flags() - OF_OTHER_PROGRAMS


def test_methods_of_the_readmes_table_exist() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|[^|]*\|[^|]*\|[^|]*\|$", README.read_text().split("## Methods")[1], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 20
    assert not named - {name for method in catalogue() for name in (method.name, *method.aliases)}
