"""How a run shows that it goes on: a bar in a terminal, lines in a file."""

import sys
import time
from typing import Any

from loguru import logger
from tqdm import tqdm

from peft_pretraining.flags.fields import Interval

# Whole at 80 columns: percentage, ten characters of bar, counts and times, then loss, rate and speed.
_BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class ProgressDisplay:
    """Opened by the first update, so that no empty bar stands between the lines of the start.

    total, done: updates of the run, and those before this start. every: between two lines where there is no terminal.
    """

    def __init__(self, total: int, done: int, every: Interval) -> None:
        self._total, self._first, self._every = total, done, every
        self._bar: tqdm[Any] | None = None
        self._started = self._said_at = time.monotonic()
        self._said = done

    def update(self, update: int, loss: float, lr: float, tokens_per_second: float, more: str = "") -> None:
        """Shows a finished update. more: what a line says besides, as the utilisation of the device."""
        if sys.stderr.isatty():
            self._show_bar(loss, lr, tokens_per_second)
        elif self._line_is_due(update):
            self._said, self._said_at = update, time.monotonic()
            left = "" if update == self._total else f", {_clock(self._seconds_left(update))} left"
            logger.info(
                f"update {update}/{self._total}: loss {loss:.4f}, lr {lr:.3g}, {tokens_per_second:,.0f} tokens/s"
                f"{more}{left}"
            )

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _show_bar(self, loss: float, lr: float, tokens_per_second: float) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=self._first, bar_format=_BAR, dynamic_ncols=True)
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {_short(tokens_per_second)} tok/s", refresh=False)
        self._bar.update()

    def _line_is_due(self, update: int) -> bool:
        if update in (self._first + 1, self._total):
            return True
        if self._every.updates is not None:
            return update - self._said >= self._every.updates
        assert self._every.seconds is not None
        return time.monotonic() - self._said_at >= self._every.seconds

    def _seconds_left(self, update: int) -> float:
        return (time.monotonic() - self._started) / max(update - self._first, 1) * (self._total - update)


def _clock(seconds: float) -> str:
    """1:05:09, or 5:09 under an hour."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _short(number: float) -> str:
    """Three digits and a letter: 873, 12.3k, 1.20M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
