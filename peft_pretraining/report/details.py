"""Figures of --log_details: a figure a kind of statistic, a panel an arm, a line a part of the model or its role."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peft_pretraining.report.arms import Arm
from peft_pretraining.report.curves import Values, detail_names, training_curve
from peft_pretraining.report.drawing import WIDTH, Plot, log_scale, styles

_FEW = 30  # points that a line is drawn with, so that one alone is seen too
_NAMED = 16  # more parts than this are drawn by role; more lines are told apart by colour, from the first to the last
_SPANS_DECADES = {"gradient_rms", "update_rms", "update_norm", "weight_norm"}
_SPANS_DECADES |= {"second_moment_min", "second_moment_mean", "second_moment_max"}
_LAYER = re.compile(r"\b\d+\.")


@dataclass(frozen=True)
class _Line:
    """Updates and values of a part, or the median of several with their lowest and highest."""

    label: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


def detail_plots(arms: Sequence[Arm], prefix: str, every_layer: bool = False) -> list[Plot]:
    """A plot for every kind of column named KIND/PART in the metrics of these arms.

    every_layer: a line for each part, even where there are many; otherwise those are put together by role.
    """
    names = [detail_names(arm.chosen) for arm in arms]
    plots = []
    for kind in dict.fromkeys(kind for kinds in names for kind in kinds):
        having = [(arm, kinds[kind]) for arm, kinds in zip(arms, names, strict=True) if kind in kinds]
        plots.append(_detail_plot(having, kind, prefix, every_layer))
    return plots


def role(part: str) -> str:
    """self_attn.q_proj of layers.3.self_attn.q_proj: the name without the number of the layer."""
    return _LAYER.sub("", part.removeprefix("layers."))


def _detail_plot(having: Sequence[tuple[Arm, list[str]]], kind: str, prefix: str, every_layer: bool) -> Plot:
    grouped = not every_layer and any(len(parts) > _NAMED for _, parts in having)

    @cache
    def lines() -> list[list[_Line]]:
        found = [_lines(arm, kind, parts) for arm, parts in having]
        return [_by_role(own) for own in found] if grouped else found

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(having), squeeze=False, sharex=True)[:, 0]
        for axes, (arm, _), own in zip(panels, having, lines(), strict=True):
            _draw_lines(axes, own)
            axes.set_title(arm.label, loc="left")
            if kind in _SPANS_DECADES:
                log_scale(axes.yaxis)
        panels[-1].set_xlabel("updates")

    if grouped:
        note = "Mean over seeds; a line is the median over the layers of a role, its band their lowest and highest."
    else:
        note = f"Mean over seeds; a line a part of the model, from the first (dark) to the last (light) above {_NAMED}."
    shown = max(len({role(part) if grouped else part for part in parts}) for _, parts in having)
    height = max(1.7, 0.16 * min(shown, _NAMED))
    title = f"Details: {kind.replace('_', ' ')}"
    return Plot(f"{prefix}detail-{kind}", title, note, draw, (WIDTH, 0.6 + height * len(having)))


def _lines(arm: Arm, kind: str, parts: Sequence[str]) -> list[_Line]:
    curves = [(part, training_curve(arm.chosen, f"{kind}/{part}", "updates")) for part in parts]
    return [_Line(part, *curve.known()) for part, curve in curves if curve is not None]


def _by_role(lines: Sequence[_Line]) -> list[_Line]:
    """A line for each role, at the updates that any of its parts has."""
    roles: dict[str, list[_Line]] = {}
    for line in lines:
        roles.setdefault(role(line.label), []).append(line)
    return [_together(name, same) for name, same in roles.items()]


def _together(name: str, lines: Sequence[_Line]) -> _Line:
    x = np.unique(np.concatenate([line.x for line in lines]))
    values = np.full((len(lines), len(x)), np.nan)
    for row, line in zip(values, lines, strict=True):
        row[np.searchsorted(x, line.x)] = line.y
    if len(lines) == 1:
        return _Line(name, x, values[0])
    return _Line(name, x, np.nanmedian(values, 0), np.nanmin(values, 0), np.nanmax(values, 0))


def _draw_lines(axes: Axes, lines: Sequence[_Line]) -> None:
    looks = [(style.color, style.line) for style in styles([line.label for line in lines]).values()]
    if len(lines) > _NAMED:
        shades = colormaps["viridis"](np.linspace(0.15, 0.85, len(lines)))
        looks = [(color, "-") for color in shades]
    for line, (color, dashes) in zip(lines, looks, strict=True):
        marker = "o" if len(line.x) <= _FEW else None
        axes.plot(line.x, line.y, dashes, marker=marker, color=color, label=line.label, linewidth=1, markersize=2)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.05, linewidth=0)
    if len(lines) <= _NAMED:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
