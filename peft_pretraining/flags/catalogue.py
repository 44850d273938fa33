"""What the methods of `optimizers` are called and which flags they have, read from their files.

Importing the package imports torch, which takes seconds. A list of names for --help, and the message for a mistyped
flag, are read from the source instead: `register(Method(name, description, ...))` and the fields of settings classes.
"""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A method. flags: all spellings, without leading dashes."""

    name: str
    description: str
    aliases: tuple[str, ...]
    flags: frozenset[str]

    def is_called(self, name: str) -> bool:
        """Whether this is the method's name or an alias, in any case."""
        return name.lower() in (self.name, *self.aliases)


@cache
def catalogue() -> tuple[Entry, ...]:
    """All methods of the package, by name."""
    found = find_spec("optimizers")
    assert found is not None and found.origin is not None
    package = Path(found.origin).parent
    files = [
        *package.glob("*.py"),
        *package.glob("primitives/*.py"),
        *(package / "engine" / name for name in ("options.py", "parts.py")),
    ]
    nodes = [node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    calls = [_argument_of(node.value, "register") for node in nodes if isinstance(node, ast.Expr)]
    return tuple(sorted((_entry(call, classes) for call in calls if call), key=lambda entry: entry.name))


def _entry(call: ast.Call, classes: dict[str, ast.ClassDef]) -> Entry:
    name, description = (ast.literal_eval(argument) for argument in call.args[:2])
    stated = {keyword.arg: keyword.value for keyword in call.keywords}
    aliases = ast.literal_eval(stated["aliases"]) if "aliases" in stated else ()
    own = _name(stated["settings"]) if "settings" in stated else _parameter(classes[_name(call.args[2])], classes)
    engine = "engine" not in stated or ast.literal_eval(stated["engine"])
    flags = (
        _flags(own, classes) | _flags("RoutingOptions", classes) | (_flags("EngineOptions", classes) if engine else {})
    )
    return Entry(name, description, aliases, frozenset(spelling for names in flags.values() for spelling in names))


def _flags(kind: str, classes: dict[str, ast.ClassDef]) -> dict[str, tuple[str, ...]]:
    """Field of a settings class, inherited ones too -> the spellings of its flag; none where it is no flag."""
    found: dict[str, tuple[str, ...]] = {}
    node = classes.get(kind)
    if node is None:
        return found
    for base in reversed(node.bases):
        found |= _flags(_name(base), classes)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Call) and isinstance(line.target, ast.Name):
            name, stated = line.target.id, {k.arg: k.value for k in line.value.keywords}
            further = ast.literal_eval(stated["flags"]) if "flags" in stated else ()
            found[name] = (name, *further) if "flag" not in stated else ()
    return found


def _parameter(kind: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> str:
    """The settings class of a class on the engine: the argument of its base, or of its base's base."""
    stated = [_name(base.slice) for base in kind.bases if isinstance(base, ast.Subscript)]
    return stated[0] if stated else _parameter(classes[_name(kind.bases[0])], classes)


def _argument_of(node: ast.expr, function: str) -> ast.Call | None:
    """The call that is the argument of a call of this function."""
    if not isinstance(node, ast.Call) or _name(node.func) != function:
        return None
    return node.args[0] if isinstance(node.args[0], ast.Call) else None


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
