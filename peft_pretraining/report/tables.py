"""Tables in every form that a paper or a page wants."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_pretraining.report.arms import Arm, Task
from peft_pretraining.report.comparison import Row
from peft_pretraining.units import MIB

if TYPE_CHECKING:
    import pandas

_ASIDE = {"save_dir", "name", "wandb_run_name", "continue_from"}


@dataclass(frozen=True)
class Table:
    """name: of its files. cells are text, ready to print. note: what the reader has to know."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def csv(self) -> str:
        return self._frame().to_csv(index=False)

    def markdown(self) -> str:
        """A pipe table."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.columns, tuple("-" * width for width in widths), *self.rows]
        escaped = [[cell.replace("|", "\\|").ljust(w) for cell, w in zip(row, widths, strict=True)] for row in lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in escaped) + "\n"

    def latex(self) -> str:
        """A booktabs table."""
        return self._frame().to_latex(index=False, escape=True, caption=self.title, label=f"tab:{self.name}")

    def save(self, folder: Path) -> None:
        """Writes NAME.csv, NAME.md and NAME.tex."""
        for suffix, text in (("csv", self.csv()), ("md", self.markdown()), ("tex", self.latex())):
            (folder / f"{self.name}.{suffix}").write_text(text, encoding="utf-8")

    def _frame(self) -> "pandas.DataFrame":
        import pandas

        return pandas.DataFrame(list(self.rows), columns=list(self.columns))


def perplexity_table(task: Task, rows: Sequence[Row], prefix: str) -> Table:
    """Methods by perplexity."""
    columns = (
        "method",
        "lr",
        "seeds",
        "perplexity",
        "vs baseline",
        "p (Holm)",
        "bits per byte",
        "tokens",
        "tokens/s",
        "state MiB",
        "peak MiB",
    )
    cells = tuple(
        (
            row.arm.label,
            f"{row.arm.lr:g}",
            str(len(row.arm.chosen)),
            f"{row.perplexity:.2f}" + ("" if row.spread is None else f" ± {row.spread:.2f}") + row.mark,
            _number(row.difference, "+.1%"),
            _chance(row.p),
            _number(row.bits_per_byte, ".4f"),
            _number(row.tokens, ",.0f"),
            _number(row.tokens_per_second, ",.0f"),
            _number(None if row.state_bytes is None else row.state_bytes / MIB, ",.2f"),
            _number(row.peak_mib, ",.0f"),
        )
        for row in rows
    )
    note = (
        "Mean ± standard deviation over seeds. * differs from the baseline with p < 0.05: Welch's t-test on final "
        "losses, corrected for the number of methods (Holm). Learning rates were chosen on the same evaluation tokens."
    )
    if task.settings["evaluation"] == "published":
        note += " Perplexities carry the bias of the published evaluation and are too low."
    return Table(f"{prefix}perplexity", "Final evaluation perplexity", columns, cells, note)


def difference_table(arms: Sequence[Arm], prefix: str) -> Table | None:
    """The flags in which the compared runs differ; None where they differ in none."""
    found: dict[str, list[str]] = {}
    for flag in dict.fromkeys(flag for arm in arms for flag in arm.settings):
        values = [_values(arm, flag) for arm in arms]
        if flag not in _ASIDE and (len(set(values)) > 1 or any(", " in value for value in values)):
            found[flag] = values
    if not found:
        return None
    rows = tuple((flag, *values) for flag, values in found.items())
    note = "Only flags that differ between the compared runs; – is a flag that the method does not have."
    return Table(f"{prefix}differences", "Configuration differences", ("flag", *(a.label for a in arms)), rows, note)


def _values(arm: Arm, flag: str) -> str:
    runs = arm.chosen or arm.runs
    return ", ".join(dict.fromkeys(_text(run.settings.get(flag)) for run in runs))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chance(p: float | None) -> str:
    return "<0.001" if p is not None and p < 0.001 else _number(p, ".3f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)
