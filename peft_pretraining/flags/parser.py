"""Reads flags from typed dataclasses: grouped help, negations, mistakes met with the nearest name."""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import Interval, TokenCount

_METAVARS = {int: "N", float: "X", str: "TEXT", TokenCount: "TOKENS", Interval: "N|TIME"}
_WANTED = {int: "a whole number", float: "a number"}
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SPELLED = "_spelled"
_LONG = 40  # characters of choices beyond which help lists them in its sentence, not beside the flag


def nearest(name: str, candidates: Iterable[str]) -> str:
    """'; did you mean a, b?' for the closest candidates, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal; a flag's names are listed once, with one value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        return names if action.nargs in (0, "?") else f"{names} {self._format_args(action, action.dest.upper())}"


class _Store(argparse.Action):
    """Stores a value: the last one counts, but two names of one flag must not contradict each other."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, name: str | None = None
    ) -> None:
        before = getattr(namespace, _SPELLED, {}).get(self.dest, (name, value))
        if before[0] != name and before[1] != value:
            raise UsageError(f"{before[0]} {before[1]} and {name} {value} set the same value: leave one of them out")
        setattr(namespace, _SPELLED, {**getattr(namespace, _SPELLED, {}), self.dest: (name, value)})
        setattr(namespace, self.dest, value)


class FlagParser(argparse.ArgumentParser):
    """A parser whose flags are the fields of dataclasses; it raises UsageError instead of exiting.

    Nothing is required while parsing: `required` lists the flags without default, for whoever merges the values.
    Names may be written with hyphens instead of underscores.
    """

    def __init__(self, sections: Iterable[type] = (), **settings: Any) -> None:
        super().__init__(
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            **settings,
        )
        self.add_argument("-h", "--help", action="store_true", help="print this help; see also --optimizer")
        self.fields: dict[str, dataclasses.Field[Any]] = {}
        for section in sections:
            self.add_section(section)

    def add_section(self, section: type, title: str | None = None) -> None:
        """Adds a flag for each field of a dataclass that is declared as one. title: its heading in the help."""
        heading = title or section._argument_group_name  # type: ignore[attr-defined]
        group, hints = self.add_argument_group(heading), get_type_hints(section)
        for field in dataclasses.fields(section):
            if not field.metadata.get("flag", True):
                continue
            if field.name in self.fields:
                raise TypeError(f"two configurations define the flag --{field.name}")
            self.fields[field.name] = field
            _add_flag(group, field, _plain(hints[field.name]))

    @property
    def required(self) -> list[str]:
        """Names of the fields that have no default."""
        return [name for name, field in self.fields.items() if default_of(field) is dataclasses.MISSING]

    @property
    def flags(self) -> list[str]:
        """Every accepted flag, with its leading dashes."""
        return [name for action in self._actions for name in action.option_strings if len(name) > 2]

    def split(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The flags of this parser that these words state, by field name, and the words that are left."""
        namespace, rest = self.parse_known_args([_underscored(word) for word in words])
        return {name: value for name, value in vars(namespace).items() if name != _SPELLED}, rest

    def require(self, given: Iterable[str]) -> None:
        """Raises UsageError for the first flag without default that is not among these names."""
        missing = next((name for name in self.required if name not in given), None)
        if missing is not None:
            raise UsageError(f"--{missing} is required: {self.fields[missing].metadata['help']}")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with what argparse complains about."""
        match = re.match(r"argument ([^:]*): (.*)", message, re.DOTALL)
        raise UsageError(message if match is None else f"{match[1].split('/')[0]}: {match[2]}")


def is_flag(word: str) -> bool:
    """Whether a word is a flag rather than a value, which may be a negative number."""
    return re.match(r"-+[a-zA-Z_]", word) is not None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _underscored(word: str) -> str:
    """--some-flag=a-b as --some_flag=a-b."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _plain(hint: Any) -> type:
    """The type of a field that may also be None."""
    alternatives = [kind for kind in get_args(hint) if kind is not type(None)]
    return alternatives[0] if alternatives else hint


def _add_flag(group: Any, field: dataclasses.Field[Any], kind: type) -> None:
    names = [f"--{name.lstrip('-')}" for name in (field.name, *field.metadata.get("flags", ()))]
    read = _reader(field, kind)
    if kind is bool:
        group.add_argument(*names, dest=field.name, type=read, action=_Store, nargs="?", const=True, help=_help(field))
        negation = f"--no_{field.name}"
        group.add_argument(negation, dest=field.name, action="store_const", const=False, help=argparse.SUPPRESS)
        return
    choices = ",".join(map(str, field.metadata.get("choices") or ()))
    metavar = field.metadata.get("metavar") or _METAVARS.get(kind)
    if 0 < len(choices) <= _LONG:
        metavar = f"{{{choices}}}"
    group.add_argument(*names, dest=field.name, type=read, action=_Store, metavar=metavar, help=_help(field))


def _help(field: dataclasses.Field[Any]) -> str:
    text, default = str(field.metadata["help"]), default_of(field)
    choices = ", ".join(map(str, field.metadata.get("choices") or ()))
    if len(choices) > _LONG:
        text += f"; one of {choices}"
    if default is dataclasses.MISSING:
        text += " (required)"
    elif default is not None and default is not False:
        text += f" (default {default})"
    return text.replace("%", "%%")


def _reader(field: dataclasses.Field[Any], kind: type) -> Callable[[str], Any]:
    """Makes the value of a word; raises UsageError that names the flag, the word and what is expected."""
    flag, choices = f"--{field.name}", [str(choice) for choice in field.metadata.get("choices") or ()]

    def read(word: str) -> Any:
        if choices and word not in choices:
            raise UsageError(f"{flag} {word}: choose one of {', '.join(choices)}{nearest(word, choices)}")
        if kind is bool:
            if word.lower() not in _SWITCH:
                raise UsageError(f"{flag} {word}: expected true or false")
            return _SWITCH[word.lower()]
        try:
            return os.path.expanduser(word) if kind is str else kind(word)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{flag}: {error}") from error
        except ValueError as error:
            raise UsageError(f"{flag} {word}: expected {_WANTED.get(kind, kind.__name__)}") from error

    return read
