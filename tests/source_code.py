"""The project's own source files as syntax trees, for tests that hold rules about them."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ("optimizers", "peft_pretraining", "torchrun_main", "benchmarks", "tests", "scripts")


@dataclass(frozen=True)
class Import:
    """One imported module, by full name; `nested` when it happens inside a function."""

    module: str
    nested: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def third_party(self) -> bool:
        return self.top not in sys.stdlib_module_names and self.top not in OWN


def files(*parts: str) -> list[Path]:
    """The Python files under these folders, and these files, of the repository."""
    paths = [ROOT / part for part in parts]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    """optimizers/engine/rule.py for messages."""
    return str(path.relative_to(ROOT))


def imports(path: Path, typing: bool = False) -> Iterator[Import]:
    """Every import of a file, relative ones made absolute; those for type checkers alone only with `typing`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node, nested in _walk(tree(path), False, typing):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, nested) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (Import(f"{module}.{alias.name}", nested) for alias in node.names)


def imported_files(path: Path) -> set[Path]:
    """The repository's files that a file imports anywhere, for type checkers too."""
    return {found for each in imports(path, typing=True) if (found := _file_of(each.module)) is not None} - {path}


def _file_of(module: str) -> Path | None:
    """Where a module, or a name in one, is written."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def docstrings(path: Path) -> set[int]:
    """Identities of the constants that are docstrings (or strings standing alone)."""
    return {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _walk(node: ast.AST, nested: bool, typing: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test) and not typing:
            continue
        inside = nested or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from _walk(child, inside, typing)
