"""The figures of a report."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peft_pretraining.report.arms import Arm, Task, by_lr, final_loss
from peft_pretraining.report.comparison import Row
from peft_pretraining.report.curves import evaluation_curve, phases, training_curve
from peft_pretraining.report.drawing import INK, PALETTE, WIDTH, Plot, Style, legend_beside, log_scale
from peft_pretraining.units import MIB

Styles = Mapping[str, Style]
_AXES = {
    "tokens": "tokens seen (padding left out)",
    "updates": "updates",
    "seconds": "seconds of training (evaluation and checkpoints left out)",
}
_SHOWN_AFTER = 0.05  # the first losses of a run would squeeze all that follows


class _Norm(NamedTuple):
    """A norm over a run: its column in the metrics, the name of its file, and what to know of it."""

    column: str
    name: str
    title: str
    note: str


_NORMS = (
    _Norm("grad_norm", "grad-norm", "Gradient norm", "Before clipping; none with updates inside the backward pass."),
    _Norm("update_norm/total", "update-norm", "Update norm", "Of all weights after an update less those before it."),
    _Norm("weight_norm/total", "weight-norm", "Weight norm", "Of all weights."),
)


def task_plots(task: Task, rows: Sequence[Row], styles: Styles, prefix: str) -> list[Plot]:
    """Every figure that the runs of a task can fill. prefix: of the names of their files."""
    arms = [row.arm for row in rows]
    plots = [_loss_plot(arms, styles, axis, f"{prefix}loss-{axis}") for axis in _AXES]
    plots.append(_perplexity_plot(rows, styles, f"{prefix}perplexity"))
    if any(len(by_lr(arm.runs)) > 1 for arm in arms):
        plots.append(_sensitivity_plot(arms, styles, f"{prefix}learning-rate"))
    plots += _memory_plots(rows, styles, prefix)
    if any(phases(arm.chosen) for arm in arms):
        plots.append(_phase_plot(arms, f"{prefix}step-time"))
    plots += [
        _norm_plot(arms, styles, norm, prefix)
        for norm in _NORMS
        if any(training_curve(arm.chosen, norm.column, "updates") for arm in arms)
    ]
    return plots


def _loss_plot(arms: Sequence[Arm], styles: Styles, axis: str, name: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel=_AXES[axis], ylabel="loss (nats per token)")
        top, bottom = -math.inf, math.inf
        for arm in arms:
            curve = training_curve(arm.chosen, "loss", axis)
            if curve is None:
                continue
            style = styles[arm.label]
            axes.fill_between(curve.x, curve.low, curve.high, color=style.color, alpha=0.15, linewidth=0, gid=style.gid)
            axes.plot(curve.x, curve.mean, color=style.color, linestyle=style.line, label=arm.label, gid=style.gid)
            x, losses = evaluation_curve(arm.chosen, axis)
            axes.plot(x, losses, color=style.color, linestyle="none", marker="o", markersize=3.5, gid=style.gid)
            known = curve.mean[int(len(curve.mean) * _SHOWN_AFTER) :]
            top, bottom = max(top, float(known.max())), min(bottom, float(curve.low.min()), *losses)
        if math.isfinite(top) and top > bottom:
            axes.set_ylim(bottom - 0.03 * (top - bottom), top + 0.03 * (top - bottom))
        legend_beside(figure, axes)

    title = {"tokens": "Loss against tokens", "updates": "Loss against updates", "seconds": "Loss against wall-clock"}
    note = "Lines: training loss, mean over seeds; bands: lowest and highest seed; points: evaluation loss."
    return Plot(name, title[axis], note, draw)


def _perplexity_plot(rows: Sequence[Row], styles: Styles, name: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="final evaluation perplexity (lower is better)")
        for place, row in enumerate(rows):
            style = styles[row.arm.label]
            found = [math.exp(min(final_loss(run), 700)) for run in row.arm.chosen]
            axes.plot(found, [place] * len(found), "o", color=style.color, alpha=0.5, markersize=5, gid=style.gid)
            axes.plot([row.perplexity], [place], "|", color=style.color, markersize=16, gid=style.gid)
            axes.annotate(
                f"{row.perplexity:.2f}{row.mark}",
                (max(found), place),
                textcoords="offset points",
                xytext=(8, 0),
                va="center",
                gid=style.gid,
            )
        _name_rows(axes, rows)
        axes.margins(x=0.15)

    note = "Points: seeds; bars: their mean; * differs significantly from the baseline (Welch's t-test, Holm)."
    return Plot(name, "Final perplexity", note, draw, _height(rows))


def _sensitivity_plot(arms: Sequence[Arm], styles: Styles, name: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="learning rate", ylabel="final evaluation loss")
        log_scale(axes.xaxis)
        for arm in arms:
            style, found = styles[arm.label], by_lr(arm.runs)
            means = [fmean(final_loss(run) for run in runs) for runs in found.values()]
            axes.plot(list(found), means, color=style.color, linestyle=style.line, label=arm.label, gid=style.gid)
            points = [(lr, final_loss(run)) for lr, runs in found.items() for run in runs]
            axes.plot(*zip(*points, strict=True), "o", color=style.color, markersize=3.5, alpha=0.6, gid=style.gid)
            if arm.lr is not None:
                best = fmean(final_loss(run) for run in arm.chosen)
                axes.plot([arm.lr], [best], "D", color=style.color, markersize=7, gid=style.gid)
        legend_beside(figure, axes)

    note = "Points: runs; lines: their means; diamonds: the rate that is compared. Diverged runs have no point."
    return Plot(name, "Sensitivity to the learning rate", note, draw)


def _memory_plots(rows: Sequence[Row], styles: Styles, prefix: str) -> list[Plot]:
    plots = []
    if any(row.state_bytes is not None for row in rows):
        plots.append(
            _bars(
                rows,
                styles,
                f"{prefix}state-bytes",
                "Optimizer state",
                "MiB",
                "Bytes of the tensors that a checkpoint keeps for the optimizer.",
                lambda row: None if row.state_bytes is None else row.state_bytes / MIB,
            )
        )
    if any(row.peak_mib is not None for row in rows):
        note = "On CUDA the allocator's peak; on CPU the process's largest resident set, Python and libraries included."
        plots.append(
            _bars(
                rows,
                styles,
                f"{prefix}peak-memory",
                "Peak memory",
                "MiB",
                note,
                lambda row: row.peak_mib,
            )
        )
    return plots


def _bars(
    rows: Sequence[Row],
    styles: Styles,
    name: str,
    title: str,
    unit: str,
    note: str,
    value: Callable[[Row], float | None],
) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel=unit)
        for place, row in enumerate(rows):
            found = value(row)
            if found is None:
                continue
            style = styles[row.arm.label]
            (bar,) = axes.barh([place], [found], color=style.color, alpha=0.85, height=0.6)
            bar.set_gid(style.gid)
            axes.annotate(
                f"{found:,.4g}" if found < 1000 else f"{found:,.0f}",
                (found, place),
                textcoords="offset points",
                xytext=(5, 0),
                va="center",
                gid=style.gid,
            )
        _name_rows(axes, rows)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)

    return Plot(name, title, note, draw, _height(rows))


def _phase_plot(arms: Sequence[Arm], name: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="milliseconds of an update (median)")
        found = [phases(arm.chosen) for arm in arms]
        left = [0.0] * len(arms)
        for index, phase in enumerate(dict.fromkeys(phase for times in found for phase in times)):
            widths = [1000 * times.get(phase, 0.0) for times in found]
            axes.barh(range(len(arms)), widths, left=left, color=PALETTE[index % 8], label=phase, height=0.6)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _name_places(axes, [arm.label for arm in arms])
        legend_beside(figure, axes)

    note = "The first tenth of each run is left out. rest: what no part covers, such as waiting and clipping."
    return Plot(name, "Where the time of an update goes", note, draw, _height(arms))


def _norm_plot(arms: Sequence[Arm], styles: Styles, norm: _Norm, prefix: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="updates", ylabel=norm.title.lower())
        log_scale(axes.yaxis)
        for arm in arms:
            curve, style = training_curve(arm.chosen, norm.column, "updates"), styles[arm.label]
            if curve is not None:
                x, y = curve.known()
                axes.plot(x, y, color=style.color, linestyle=style.line, label=arm.label, gid=style.gid)
        legend_beside(figure, axes)

    return Plot(f"{prefix}{norm.name}", norm.title, f"Mean over seeds. {norm.note}", draw)


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    _name_places(axes, [row.arm.label for row in rows])


def _name_places(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _height(items: Sequence[object]) -> tuple[float, float]:
    return WIDTH, 0.9 + 0.34 * len(items)
