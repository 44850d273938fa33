"""Figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SMOOTHING_SHARE = 50  # the drawn mean covers a fiftieth of the run


def draw_loss_curve(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws training loss, its running mean and evaluation loss over updates into a PNG.

    records: lines of metrics.jsonl. Skipped updates, whose loss is null, leave a gap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training = [(r["update_step"], r["loss"]) for r in records if r.get("loss") is not None]
    evaluations = [(r["update_step"], r["eval_loss"]) for r in records if r.get("eval_loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="update", ylabel="loss (nats per token)")
    if training:
        updates, losses = zip(*training, strict=True)
        axes.plot(updates, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="training")
        axes.plot(updates, _running_mean(losses), color="tab:blue", linewidth=1.6, label="training, running mean")
    if evaluations:
        updates, losses = zip(*evaluations, strict=True)
        axes.plot(updates, losses, color="tab:red", marker="o", markersize=4, label="evaluation")
    if training or evaluations:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, as far back as the smoothing reaches."""
    reach, means, total = max(1, len(values) // _SMOOTHING_SHARE), [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - reach] if index >= reach else 0.0)
        means.append(total / min(index + 1, reach))
    return means
