"""Words that nothing reads: answered with what was probably meant, and with the methods that have the flag."""

from collections.abc import Iterable, Sequence
from typing import NoReturn

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.catalogue import Entry, catalogue
from peft_pretraining.flags.parser import is_flag, nearest


def check_method(name: str) -> Entry:
    """The catalogue's entry of a method. Raises UsageError with near names."""
    found = next((entry for entry in catalogue() if entry.is_called(name)), None)
    if found is None:
        names = [spelling for entry in catalogue() for spelling in (entry.name, *entry.aliases)]
        hint = nearest(name.lower(), names) or f"; choose one of {', '.join(entry.name for entry in catalogue())}"
        raise UsageError(f"--optimizer: unknown optimizer {name!r}{hint}")
    return found


def check_words(words: Sequence[str], method: str | None, shared: Iterable[str]) -> None:
    """Refuse words that are no flag of this method of the package, before anything that takes seconds is imported.

    words: what is left of a command line without the flags in `shared`. method: None where none was chosen.
    """
    own = check_method(method).flags if method is not None else frozenset()
    at = next((number for number, word in enumerate(words) if is_flag(word) and _field(word) not in own), None)
    if at is not None:
        reject(words[at:], method, [*shared, *(f"--{flag}" for flag in own)])


def reject(stray: Sequence[str], method: str | None, usable: Iterable[str]) -> NoReturn:
    """Raise UsageError for words of which the first is no flag, or not one of this method. usable: flags that are."""
    at = next((number for number, word in enumerate(stray) if is_flag(word)), None)
    if at is None:
        raise UsageError(f"{stray[0]!r} belongs to no flag; --help lists the flags")
    name, _, value = stray[at].partition("=")
    value = value or next((word for word in stray[at + 1 : at + 2] if not is_flag(word)), "")
    owners = [entry.name for entry in catalogue() if _field(name) in entry.flags]
    if owners and method is None:
        raise UsageError(f"{name} is a flag of {listed(owners)}: choose one with --optimizer")
    if owners:
        said = f"{name} {value}".strip()
        raise UsageError(f"{said} is not used by --optimizer {method}: leave it out, or choose {listed(owners)}")
    raise UsageError(f"unknown flag {name}{nearest(name, usable) or _of_some_method(name)}")


def listed(items: Sequence[object]) -> str:
    """'a, b or c', or the first few of many."""
    words = [str(item) for item in items[:4]] + (["another of --help"] if len(items) > 4 else [])
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _of_some_method(name: str) -> str:
    flags = {f"--{flag}" for entry in catalogue() for flag in entry.flags}
    return nearest(name, flags) or "; --help lists the flags"


def _field(word: str) -> str:
    """The name that a flag is declared under, its negation and value left out."""
    return word.lstrip("-").partition("=")[0].removeprefix("no_")
