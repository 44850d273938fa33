"""Figures of --log_details: a figure a kind of statistic, a panel an arm, a line a part of the model."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from peft_pretraining.reports.arms import Arm
from peft_pretraining.reports.curves import detail_names, training_curve
from peft_pretraining.reports.drawing import Plot

_FEW = 30  # points that a line is drawn with, so that one alone is seen too
_NAMED = 12  # more lines than this are told apart by colour alone, from the first to the last part
_SPANS_DECADES = {"gradient_rms", "update_rms", "update_norm", "second_moment_mean", "second_moment_max"}


def detail_plots(arms: Sequence[Arm], prefix: str) -> list[Plot]:
    """A plot for every kind of column named KIND/PART in the metrics of these arms."""
    kinds = dict.fromkeys(kind for arm in arms for kind in detail_names(arm.chosen))
    return [_detail_plot(arms, kind, prefix) for kind in kinds]


def _detail_plot(arms: Sequence[Arm], kind: str, prefix: str) -> Plot:
    having = [arm for arm in arms if kind in detail_names(arm.chosen)]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(having), squeeze=False, sharex=True)[:, 0]
        for axes, arm in zip(panels, having, strict=True):
            parts = detail_names(arm.chosen)[kind]
            colors = colormaps["viridis"]([0.15 + 0.7 * i / max(1, len(parts) - 1) for i in range(len(parts))])
            for part, color in zip(parts, colors, strict=True):
                curve = training_curve(arm.chosen, f"{kind}/{part}", "updates")
                if curve is not None:
                    few = len(curve.known()[0]) <= _FEW
                    axes.plot(*curve.known(), "o-" if few else "-", color=color, label=part, linewidth=1, markersize=2)
            axes.set_title(arm.label, loc="left")
            if kind in _SPANS_DECADES:
                axes.set_yscale("log")
            if len(parts) <= _NAMED:
                axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        panels[-1].set_xlabel("updates")

    words = kind.replace("_", " ")
    note = f"Mean over seeds; a line a part of the model, from the first (dark) to the last (light) above {_NAMED}."
    return Plot(f"{prefix}detail-{kind}", f"Details: {words}", note, draw, (7.2, 0.6 + 1.7 * len(having)))
