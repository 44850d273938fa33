"""What every typed configuration shares: flags as dataclass fields, and token counts.

Each part of the harness keeps a frozen dataclass of such fields beside the code it configures.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from decimal import Decimal
from typing import Any, Self

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|)")
_TOKEN_COUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?)\s*([KMBT]?)", re.IGNORECASE)


def flag(
    default: Any = MISSING,
    *,
    help: str,
    aliases: Sequence[str] = (),
    choices: Sequence[Any] | None = None,
    default_factory: Callable[[], Any] | Any = MISSING,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag: `FlagParser` reads its metadata.

    `help` states the unit. `aliases` are further names, with or without leading dashes. Percent signs need no
    escaping. A field without default is a required flag.
    """
    metadata: dict[str, Any] = {"help": help}
    if aliases:
        metadata["flags"] = tuple(alias.lstrip("-") for alias in aliases)
    if choices is not None:
        metadata["choices"] = tuple(choices)
    if metavar is not None:
        metadata["metavar"] = metavar
    if default_factory is not MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class TokenCount(int):
    """A number of tokens that people write as `100M`, `1.5B` or `10_000`; K, M, B, T are powers of 1000."""

    def __new__(cls, value: int | str) -> Self:
        """Raises argparse.ArgumentTypeError, which a parser reports beside the flag's name."""
        if isinstance(value, int) and not isinstance(value, bool):
            return super().__new__(cls, value)
        match = _TOKEN_COUNT.fullmatch(str(value).strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"{value!r} is no number of tokens: write 100M, 1.5B or 10_000")
        tokens = Decimal(match[1]) * _SUFFIXES[match[2].upper()]
        if tokens != int(tokens):
            raise argparse.ArgumentTypeError(f"{value!r} is no whole number of tokens")
        return super().__new__(cls, int(tokens))


def flag_values(section: Any) -> dict[str, Any]:
    """The flags of a configuration with their values; those of a nested one are among them."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            values |= flag_values(value)
        elif field.metadata.get("flag", True) and field.metadata:
            values[field.name] = value
    return values


class Interval(str):
    """How often something happens: every so many updates, as `500`, or after a time, as `30min`, `90s` or `2h`.

    updates: their number, None for a time. seconds: the time, None for a number of updates.
    """

    updates: int | None
    seconds: float | None

    def __new__(cls, value: int | str) -> Self:
        """Raises argparse.ArgumentTypeError, which a parser reports beside the flag's name."""
        match = _INTERVAL.fullmatch(str(value).strip())
        if match is None or float(match[1]) == 0 or (match[2] == "" and "." in match[1]):
            raise argparse.ArgumentTypeError(f"{value!r}: write a number of updates, as 500, or a time, as 30min or 2h")
        made = super().__new__(cls, match[1] + match[2])
        made.updates = None if match[2] else int(match[1])
        made.seconds = float(match[1]) * _SECONDS[match[2]] if match[2] else None
        return made
