"""The page: sections of plots and tables, and the template that they are put into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_pretraining.report.arms import Task, make_tasks
from peft_pretraining.report.comparison import Row, cautions, compare, find_baseline
from peft_pretraining.report.details import detail_plots
from peft_pretraining.report.drawing import Plot, Style, styles
from peft_pretraining.report.plots import task_plots
from peft_pretraining.report.published_figures import comparison_table, mismatch_table, pairs
from peft_pretraining.report.runs import RunRecord
from peft_pretraining.report.tables import Table, difference_table, perplexity_table


@dataclass(frozen=True)
class Section:
    """A task of the report. cautions: sentences a reader should know first. absent: what could not be shown."""

    task: Task
    rows: list[Row]
    cautions: list[str]
    plots: list[Plot]
    result: Table
    others: list[Table]
    absent: list[str]

    @property
    def tables(self) -> list[Table]:
        return [self.result, *self.others]


@dataclass(frozen=True)
class Report:
    """All that a report says. baseline: what methods are compared with."""

    title: str
    baseline: str
    sections: list[Section]
    styles: dict[str, Style]
    runs: int

    def save_parts(self, folder: Path) -> None:
        """Every plot as PNG and SVG, every table as CSV, Markdown and LaTeX."""
        folder.mkdir(parents=True, exist_ok=True)
        for section in self.sections:
            for plot in section.plots:
                plot.save(folder)
            for table in section.tables:
                table.save(folder)

    def html(self) -> str:
        """The page, complete in one file: nothing is loaded from anywhere."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("peft_pretraining.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html").render(report=self)


def make_report(runs: Sequence[RunRecord], title: str, baseline: str, every_layer: bool = False) -> Report:
    """Compares the runs. baseline: the label of a method, or the name of an optimizer. every_layer: a line for each
    layer in figures of --log_details."""
    tasks = make_tasks(runs)
    labels = dict.fromkeys(arm.label for task in tasks for arm in task.arms)
    looks = styles(list(labels))
    prefixes = [f"task{number}-" if len(tasks) > 1 else "" for number in range(1, len(tasks) + 1)]
    sections = [
        _section(task, baseline, looks, prefix, every_layer) for task, prefix in zip(tasks, prefixes, strict=True)
    ]
    return Report(title, baseline, sections, looks, len(runs))


def _section(task: Task, baseline: str, looks: dict[str, Style], prefix: str, every_layer: bool) -> Section:
    rows = compare(task, baseline)
    arms = [row.arm for row in rows]
    found = pairs(rows)
    tables = [comparison_table(found, prefix), mismatch_table(found, prefix), difference_table(arms, prefix)]
    absent = []
    unpublished = [row.arm.label for row in rows if row.arm.label not in {pair.row.arm.label for pair in found}]
    if unpublished:
        absent.append(f"No published perplexity of {', '.join(unpublished)} is known.")
    if rows and not any(row.state_bytes for row in rows):
        absent.append("Optimizer state: no checkpoint is left that tells its size.")
    reference = find_baseline(arms, baseline)
    title = "" if reference is None else f" (baseline: {reference.label})"
    return Section(
        task=task,
        rows=rows,
        cautions=cautions(task, baseline),
        plots=[*task_plots(task, rows, looks, prefix), *detail_plots(arms, prefix, every_layer)] if rows else [],
        result=_titled(perplexity_table(task, rows, prefix), title),
        others=[table for table in tables if table is not None],
        absent=absent,
    )


def _titled(table: Table, more: str) -> Table:
    return Table(table.name, table.title + more, table.columns, table.rows, table.note)
