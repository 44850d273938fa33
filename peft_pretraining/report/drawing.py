"""How figures look and where they go: one drawing for the page in light and dark, and PNG and SVG for papers."""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

# Mid-tones: at least 3:1 against white paper and against the dark page.
PALETTE = ("#0b72b9", "#d1581c", "#00936a", "#b85c9e", "#a67c00", "#7a66cc", "#c23b3b", "#7d7d7d")
_LINES = ("-", "--", "-.", ":")
INK = "#010101"  # the page takes it for the colour of its text
_GRID = "#808080"
WIDTH = 6.2  # inches: text of 9 points is then about as large as the page's notes
_SIZE = (WIDTH, 3.3)


@dataclass(frozen=True)
class Style:
    """How an arm is drawn everywhere. index: its number on the page, which its legend switches by."""

    index: int
    color: str
    line: str

    @property
    def gid(self) -> str:
        return f"arm-{self.index}"


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for every label; beyond the palette, colours come again with other lines."""
    return {
        label: Style(index, PALETTE[index % len(PALETTE)], _LINES[index // len(PALETTE) % len(_LINES)])
        for index, label in enumerate(labels)
    }


@dataclass(frozen=True)
class Plot:
    """A figure and how to draw it. name: of its files. note: what the reader has to know to read it."""

    name: str
    title: str
    note: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = _SIZE

    def inline(self) -> str:
        """An <svg> element for a page: text in the page's colour, arms as classes that a script can hide."""
        with _look("none", self.name):
            text = self._render("svg", transparent=True).decode("utf-8")
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'id="(arm-\d+)(?:_\d+)?"', r'class="\1"', text)
        # Only one element of a page may have an id; clip paths keep theirs, made unique by the figure's name.
        text = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend)[\w.]*"', "", text)
        return re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{self.title}">', text)

    def save(self, folder: Path) -> None:
        """Writes NAME.png and NAME.svg on white, text of the SVG as outlines."""
        with _look("path", self.name):
            for kind in ("png", "svg"):
                (folder / f"{self.name}.{kind}").write_bytes(self._render(kind, transparent=False))

    def _render(self, kind: str, transparent: bool) -> bytes:
        figure = Figure(figsize=self.size, layout="constrained")
        self.draw(figure)
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=200, transparent=transparent, metadata=metadata)
        return buffer.getvalue()


def _look(font_type: str, salt: str) -> AbstractContextManager[None]:
    return rc_context(
        {
            "svg.fonttype": font_type,
            "svg.hashsalt": salt,
            "svg.id": None,
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": _GRID,
            "grid.alpha": 0.3,
            "grid.linewidth": 0.6,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.4,
        }
    )


class _PlainNumbers(LogFormatter):
    """Which ticks of a logarithmic axis are named is matplotlib's choice; how, is not: setting its formulas took most
    of a figure's time."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return f"{value:g}" if super().__call__(value, position) else ""


def log_scale(axis: Axis) -> None:
    """Makes an axis logarithmic, with plain numbers at its ticks."""
    axis.axes.set(**{"xscale" if axis is axis.axes.xaxis else "yscale": "log"})
    axis.set_major_formatter(_PlainNumbers())
    axis.set_minor_formatter(_PlainNumbers())


def legend_beside(figure: Figure, axes: Axes) -> None:
    """A legend right of the axes, without doubled entries."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        figure.legend(unique.values(), unique.keys(), loc="outside right upper")
