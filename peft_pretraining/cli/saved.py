"""A saved configuration, run.json, as flags: its values pass the same checks as typed ones."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.catalogue import catalogue
from peft_pretraining.flags.parser import FlagParser, default_of, nearest

_FILE_LIMIT = 1 << 20
_OF_METHOD = "optimizer"


def read_saved(
    path: str, shared: FlagParser, sections: Mapping[str, type], typed: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The flags of a saved configuration that differ from the defaults, and the words that state its method's.

    Raises UsageError for a file that is no configuration, and for one whose method is code that was not typed.
    """
    try:
        saved, of_method = shared.split(_as_words(_content(path), sections, "optimizer_file" in typed))
        if "optimizer_file" in saved and "optimizer_file" not in typed:
            raise UsageError(
                "the saved run used a method of its own; type --optimizer_file "
                f"{saved['optimizer_file']} to run that code"
            )
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from error
    return {name: value for name, value in saved.items() if value != default_of(shared.fields[name])}, of_method


def _content(path: str) -> Any:
    try:
        if Path(path).stat().st_size > _FILE_LIMIT:
            raise UsageError("larger than any configuration; give the run.json of a run")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{error.strerror or error}; give the run.json of a run") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid JSON ({error})") from error


def _as_words(content: Any, sections: Mapping[str, type], own_method: bool) -> list[str]:
    """The command line that states a saved configuration. What is null was not given."""
    if not isinstance(content, Mapping):
        raise UsageError("a saved configuration is an object of sections")
    words: list[str] = []
    for section, values in content.items():
        if section not in sections or not isinstance(values, Mapping):
            raise UsageError(
                f"{section!r} is no section{nearest(section, sections) or '; one of ' + ', '.join(sections)}"
            )
        names = [field.name for field in dataclasses.fields(sections[section])]
        if section == _OF_METHOD:
            names += sorted({flag for entry in catalogue() for flag in entry.flags})
        for name, value in values.items():
            if name not in names and not (section == _OF_METHOD and own_method):
                raise UsageError(f"{section}.{name} is no setting{nearest(name, names)}")
            if value is not None:
                words.append(_word(f"{section}.{name}", name, value))
    return words


def _word(where: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}={str(value).lower()}"
    if isinstance(value, str | int | float):
        return f"--{name}={value}"
    raise UsageError(f"{where}: a {type(value).__name__} is no value of a flag")
