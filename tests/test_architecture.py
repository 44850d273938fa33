"""Rules no linter knows: imports go one way, methods are named in one place, nothing is unpickled."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from optimizers.engine import registry
from peft_pretraining.run_folder import layout
from tests.source_code import ROOT, docstrings, files, imported_files, imports, name, tree

HARNESS = files("peft_pretraining", "torchrun_main.py")
OPTIMIZERS = files("optimizers")
ABOVE = {"peft_pretraining": ("torchrun_main",), "optimizers": ("torchrun_main", "peft_pretraining")}
OUTSIDE = ("benchmarks", "tests", "scripts")
TOP = ROOT / "peft_pretraining" / "__init__.py"
COMMANDS = sorted(path.name for path in ROOT.glob("*.py"))
# The floors of the house, from the ground up. A room is a folder, or a file that lies in none; it uses the rooms below.
FLOORS = (
    (
        "optimizers",
        "peft_pretraining/errors.py",
        "peft_pretraining/console.py",
        "peft_pretraining/atomic_write.py",
        "peft_pretraining/units.py",
    ),
    ("peft_pretraining/flags", "peft_pretraining/run_folder"),
    ("peft_pretraining/model", "peft_pretraining/distributed", "peft_pretraining/data", "peft_pretraining/tracking"),
    ("peft_pretraining/checkpoint",),
    ("peft_pretraining/training",),
    ("peft_pretraining/cli",),
    (
        "peft_pretraining/report",
        "peft_pretraining/sweep",
        "peft_pretraining/memory",
        "peft_pretraining/finetuning",
        "peft_pretraining/__main__.py",
        "peft_pretraining/generate.py",
        "peft_pretraining/tokenizer.py",
        "peft_pretraining/evaluate.py",
        "peft_pretraining/launch.py",
        *COMMANDS,
    ),
    ("benchmarks",),
)


def method_files() -> dict[str, Path]:
    own = [path for path in OPTIMIZERS if path.parent.name == "optimizers"]
    return {path.stem: path for path in own if path.stem not in ("__init__", "compat")}


def room(path: Path) -> tuple[int, str]:
    """The floor, from 0, and the room a file belongs to."""
    place = name(path)
    for floor, rooms in enumerate(FLOORS):
        for each in rooms:
            if place == each or place.startswith(f"{each}/"):
                return floor, each
    raise AssertionError(f"{place} belongs to no room: give it a place among FLOORS")


def test_rooms_use_what_lies_below_them() -> None:
    """Imports for type checkers count: what a file cannot be read without is used."""
    assert len(FLOORS) <= 8
    wrong = []
    for path in files("optimizers", "peft_pretraining", "benchmarks", *COMMANDS):
        if path == TOP:
            continue
        floor, own = room(path)
        for used in imported_files(path):
            below, other = (0, own) if used == TOP or name(used).startswith("tests/") else room(used)
            # A command may start with what another one does.
            if other != own and below >= floor and own not in COMMANDS:
                wrong.append(f"{name(path)} (floor {floor + 1}) imports {name(used)} (floor {below + 1})")
    assert wrong == []


def test_no_circle_of_imports() -> None:
    graph = {path: imported_files(path) for path in files("optimizers", "peft_pretraining", "benchmarks", *COMMANDS)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(map(name, error.args[1]))) from error


@pytest.mark.parametrize("package", ABOVE)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{name(path)} imports {found.module}"
        for path in files(package)
        for found in imports(path)
        if found.top in (*ABOVE[package], *OUTSIDE)
    ]
    assert wrong == []


def test_the_optimizers_need_torch_alone() -> None:
    wrong = [
        f"{name(path)} imports {found.module}"
        for path in OPTIMIZERS
        for found in imports(path)
        if found.third_party and found.top != "torch" and not found.nested
    ]
    assert wrong == []


def test_primitives_know_no_more_of_the_engine_than_what_a_rule_is() -> None:
    wrong = [
        f"{name(path)} imports {found.module}"
        for path in files("optimizers/primitives")
        for found in imports(path)
        if found.top == "optimizers"
        if not found.module.startswith(
            ("optimizers.primitives", "optimizers.engine.rule.", "optimizers.engine.settings.")
        )
    ]
    assert wrong == []


def test_the_engine_imports_no_method() -> None:
    methods = tuple(f"optimizers.{stem}" for stem in method_files())
    wrong = [
        f"{name(path)} imports {found.module}"
        for path in files("optimizers/engine")
        for found in imports(path)
        if found.module.startswith(methods)
    ]
    assert wrong == []


def test_methods_do_not_import_one_another() -> None:
    """Online Subspace Descent is GaLore with another basis; galore_methods gives both their names."""
    allowed = (
        ("online_subspace", "galore"),
        ("galore_methods", "galore"),
        ("galore_methods", "online_subspace"),
    )
    wrong = [
        f"{name(path)} imports {found.module}"
        for stem, path in method_files().items()
        for found in imports(path)
        for other in method_files()
        if found.module.startswith(f"optimizers.{other}") and (stem, other) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("stem", ("apollo", "dion2", "fira", "muon", "scale", "soap", "subspace_momentum"))
def test_a_method_on_the_engine_is_short(stem: str) -> None:
    """What is common to methods belongs to the engine; the mathematics of one fits under 150 lines."""
    assert len((ROOT / "optimizers" / f"{stem}.py").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("path", [*HARNESS, *files("optimizers/engine")], ids=name)
def test_no_method_is_named_outside_its_file(path: Path) -> None:
    names = {n for method in registry.methods() for n in (method.name, *method.aliases)}
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])", re.IGNORECASE)
    prose = docstrings(path)
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        if pattern.search(node.value)
    ]
    assert found == []


@pytest.mark.parametrize("path", [*HARNESS, *OPTIMIZERS], ids=name)
def test_the_library_prints_nothing(path: Path) -> None:
    """Only a file that is a command itself (`if __name__ == "__main__"`) writes to standard output."""
    code = tree(path)
    command = any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in code.body)
    prints = [node.lineno for node in ast.walk(code) if isinstance(node, ast.Call) and called(node) == "print"]
    assert command or prints == []


@pytest.mark.parametrize("path", [*HARNESS, *OPTIMIZERS], ids=name)
def test_nothing_from_disk_can_run_code(path: Path) -> None:
    """No pickle, no remote code, no load of tensors without weights_only."""
    pickles = [found.module for found in imports(path) if found.top in ("pickle", "dill", "joblib", "shelve")]
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    trusted = {node.lineno: keywords(node).get("trust_remote_code") for node in calls}
    remote = [line for line, value in trusted.items() if value is not None and ast.unparse(value) != "False"]
    loads = [
        node.lineno
        for node in calls
        if called(node) == "torch.load" and ast.unparse(keywords(node).get("weights_only", node)) != "True"
    ]
    evaluated = [node.lineno for node in calls if called(node) in ("eval", "exec")]
    assert (pickles, remote, loads, evaluated) == ([], [], [], [])


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def keywords(node: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}


LAYOUT = ROOT / "peft_pretraining" / "run_folder" / "layout.py"


def test_names_of_a_run_folders_files_have_one_owner() -> None:
    texts = {value for value in vars(layout).values() if isinstance(value, str)} - {layout.MANIFEST}
    names = {text for text in texts if re.fullmatch(r"[a-z_]+\.[a-z]+", text)}
    assert {"run.json", "metrics.jsonl", "summary.json"} <= names
    typed = [
        f"{name(path)}:{node.lineno}"
        for path in files("peft_pretraining", "benchmarks", *COMMANDS)
        if path != LAYOUT
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in names
        if name(path) != "peft_pretraining/cli/parse.py"  # which shows one in its help
    ]
    assert typed == []
    script = (ROOT / "scripts" / "reproduce_table.sh").read_text()
    assert set(re.findall(r"\$run/([a-z_.]+)", script)) <= names
