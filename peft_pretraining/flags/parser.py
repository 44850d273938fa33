"""Reads flags from typed dataclasses: grouped help, negations, mistakes met with the nearest name."""

import argparse
import copy
import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import TokenCount

_ARGPARSE_KEYS = ("help", "choices", "aliases", "metavar")
_METAVARS = {int: "N", float: "X", str: "TEXT", TokenCount: "TOKENS"}
_WANTED = {"int": "a whole number", "float": "a number"}
_NOT_GIVEN = object()
_LONG = 60  # characters of choices beyond which help lists them in its sentence, not beside the flag


def nearest(name: str, candidates: Iterable[str]) -> str:
    """'; did you mean a, b?' for the closest candidates, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once: not the hyphenated twin that is accepted beside every name with an underscore."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        if not names or action.nargs == 0:
            return ", ".join(names or action.option_strings)
        return f"{', '.join(names)} {self._format_args(action, action.dest.upper())}"


class FlagParser(HfArgumentParser):
    """HfArgumentParser that tells typed flags from defaults and raises UsageError instead of exiting.

    A field may name its own help group in its metadata (`group`). Nothing is required while parsing:
    `required` lists the flags without default, for whoever merges the values.
    """

    def __init__(self, sections: Iterable[Any], **kwargs: Any) -> None:
        self._titled: dict[str, Any] = {}
        self.fields: dict[str, dataclasses.Field[Any]] = {}
        super().__init__(sections, allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    @property
    def required(self) -> list[str]:
        """Names of the fields that have no default."""
        return [
            name
            for name, field in self.fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]

    @property
    def flags(self) -> list[str]:
        """Every accepted flag with its leading dashes, hyphenated twins left out."""
        return [flag for flag in self._option_string_actions if "-" not in flag.lstrip("-") and len(flag) > 2]

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The flags that these arguments state, by field name. Raises UsageError for what is no flag."""
        blank = argparse.Namespace(**{action.dest: _NOT_GIVEN for action in self._actions})
        namespace, stray = self.parse_known_args(list(arguments), blank)
        if stray:
            self._reject(stray)
        return {name: value for name, value in vars(namespace).items() if value is not _NOT_GIVEN}

    def _reject(self, stray: Sequence[str]) -> NoReturn:
        unknown = next((word for word in stray if word.startswith("-")), None)
        if unknown is None:
            raise UsageError(f"{stray[0]!r} belongs to no flag; --help lists the flags")
        name = unknown.partition("=")[0]
        hint = nearest(name.replace("-", "_").replace("__", "--", 1), self.flags)
        raise UsageError(f"{name} is no flag{hint or '; --help lists the flags'}")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with what argparse complains about, in words that say what to type instead."""
        match = re.match(r"argument ([^:]*): (.*)", message, re.DOTALL)
        if match is None:
            raise UsageError(message)
        flag, complaint = match[1].split("/")[0], match[2]
        wrong_type = re.match(r"invalid (\w+) value: (.*)", complaint)
        wrong_choice = re.match(r"invalid choice: '?([^' ]*)'?", complaint)
        if wrong_type is not None:
            wanted = _WANTED.get(wrong_type[1], wrong_type[1])
            raise UsageError(f"{flag} {wrong_type[2].strip(chr(39))}: expected {wanted}")
        if wrong_choice is not None:
            action = self._option_string_actions[flag]
            choices = [str(choice) for choice in action.choices or ()]
            near = nearest(wrong_choice[1], choices)
            raise UsageError(f"{flag} {wrong_choice[1]}: choose one of {', '.join(choices)}{near}")
        raise UsageError(f"{flag}: {complaint}")

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        hints = get_type_hints(dtype)
        for field in dataclasses.fields(dtype):
            title = field.metadata.get("group", dtype._argument_group_name)
            if title not in self._titled:
                self._titled[title] = self.add_argument_group(title)
            resolved = copy.copy(field)
            resolved.type = hints[field.name]
            if field.name in self.fields:
                raise TypeError(f"two configurations define the flag --{field.name}")
            self.fields[field.name] = field
            self._parse_dataclass_field(self._titled[title], resolved)

    @staticmethod
    def _parse_dataclass_field(parser: Any, field: Any) -> None:
        metadata = {key: field.metadata[key] for key in _ARGPARSE_KEYS if field.metadata.get(key)}
        metadata["help"] = _help_text(field)
        plain = field.type if not get_args(field.type) else next(t for t in get_args(field.type) if t is not type(None))
        if plain is bool:
            _add_switch(parser, field.name, metadata)
            return
        choices = [str(choice) for choice in metadata.get("choices", ())]
        if len(", ".join(choices)) > _LONG:
            metadata["help"] += f"; one of {', '.join(choices)}"
        if plain in _METAVARS and not 0 < len(", ".join(choices)) <= _LONG:
            metadata.setdefault("metavar", _METAVARS[plain])
        twins = [_hyphenated(alias) for alias in metadata.get("aliases", ()) if "_" in alias]
        field.metadata = {**metadata, "aliases": [*metadata.get("aliases", ()), *twins]}
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            field.default = None
        HfArgumentParser._parse_dataclass_field(parser, field)


def _help_text(field: Any) -> str:
    text = field.metadata["help"]
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        text += " (required)"
    elif field.default is not None and field.default is not False:
        text += f" (default {field.default})"
    return str(text).replace("%", "%%")


def _add_switch(parser: Any, name: str, metadata: dict[str, Any]) -> None:
    """--name, --name true|false, and --no_name."""
    names = [f"--{name}", *metadata.get("aliases", ())]
    spellings = list(dict.fromkeys(spelling for n in names for spelling in (n, _hyphenated(n))))
    parser.add_argument(
        *spellings,
        dest=name,
        type=string_to_bool,
        nargs="?",
        const=True,
        metavar="BOOL",
        help=metadata["help"],
    )
    negation = f"--no_{name}"
    parser.add_argument(
        negation, _hyphenated(negation), dest=name, action="store_const", const=False, help=argparse.SUPPRESS
    )


def _hyphenated(flag: str) -> str:
    return "--" + flag.lstrip("-").replace("_", "-")
