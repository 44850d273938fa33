"""What --help prints: the methods, or the flags of the chosen one, and the flags that every run has."""

import shutil
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from peft_pretraining.flags.catalogue import catalogue
from peft_pretraining.flags.parser import FlagParser

Own = Mapping[str, type]


def print_help(make: Callable[[Own], FlagParser], typed: Mapping[str, Any]) -> None:
    """Print the help of a command line, as wide as the terminal.

    make: the command's parser, with further sections by heading after those of the optimizer. typed: the flags that
    stand beside --help.
    """
    about, own = methods(), {}
    if "optimizer" in typed or "optimizer_file" in typed:
        from peft_pretraining.flags.optimizer import choose, sections_of, users_methods

        method = choose(typed)
        shown = [method] if method is not None else users_methods()
        about = "\n".join(_wrapped(method.name, method.description, 0) for method in shown)
        own = {title: section for method in shown for title, section in sections_of(method).items()}
    parser = make(own)
    parser.description = f"{parser.description}\n\n{about}"
    parser.print_help()


def methods() -> str:
    """The methods of the package, each with a line."""
    lines = [_wrapped(entry.name, entry.description, 2) for entry in catalogue()]
    return "\n".join(["methods (--optimizer NAME --help shows the flags of one):", *lines])


def _wrapped(name: str, text: str, indent: int) -> str:
    width = shutil.get_terminal_size().columns - 2
    first = " " * indent + f"{name}: "
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * (indent + 4))
