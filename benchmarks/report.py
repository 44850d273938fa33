"""Turns the JSON of benchmarks/results into docs/performance.md and its plots: `python -m benchmarks.report`.

The text between the tables is in benchmarks/performance.md.tmpl; a name in double braces there stands for a table made
from results. A result that has not been measured leaves a line that says so, with the command that measures it.
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.common import RESULTS, ROOT

TEMPLATE = ROOT / "benchmarks" / "performance.md.tmpl"
DOCUMENT = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "figures"
Result = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def optimizer_step(result: Result) -> str:
    """Times against peers, bounds beside them."""
    head = ["method", "weights", "peer", "time / peer", "speed-up", "ms", "peer ms", "bound ms", "of bound"]
    rows = []
    for row in result["rows"]:
        ms, bound = row["milliseconds"], sum(row["bound_ms"].values())
        speedup = row.get("speedup_amortised", 1 / row["ratio"])
        cells = [row["method"], row["dtype"], row["peer"], f"{row['ratio']:.2f}", f"{speedup:.2f}"]
        rows.append([*cells, f"{ms['mine']:.0f}", f"{ms['peer']:.0f}", f"{bound:.0f}", f"{row['of_bound']:.0%}"])
    refresh = result["refresh_seconds"]
    ratio = f"{refresh['svd'] / refresh['randomized']:.1f}"
    words = f"{refresh['svd']:.2f} s by SVD one by one, {refresh['randomized']:.2f} s randomized ({ratio} times faster)"
    _bars(
        "optimizer_step",
        [_bar_label(row) for row in result["rows"]],
        [r["ratio"] for r in result["rows"]],
        "time of a step / time of its peer",
    )
    rates = [(k.removeprefix("torch."), v) for k, v in result["limits"].items() if k.startswith("torch.")]
    limits = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates)
    figure = "![Step times relative to their peers](figures/optimizer_step.png)"
    return f"{table(head, rows)}\n\nBases of the whole model: {words}. Products: {limits}. {_stamp(result)}\n\n{figure}"


def training(result: Result) -> str:
    """Rates, memory and utilisation of the loops."""
    head = ["model", "loop", "positions/s", "over plain", "useful tokens/s"]
    head += ["peak MiB", "over plain", "of product rate"]
    rows = []
    for model, figures in result["models"].items():
        for name, loop in figures["loops"].items():
            memory = f"{loop['memory_mib']['process']:.0f}" if "memory_mib" in loop else "as harness"
            over = loop.get("memory_over", {}).get("plain", {}).get("process")
            cells = [model, name, f"{loop['positions_per_second']:.0f}", f"{loop['rate_over'].get('plain', 1.0):.2f}"]
            cells += [f"{loop['real_tokens_per_second']:.0f}", memory, "" if over is None else f"{over:.2f}"]
            rows.append([*cells, f"{loop['flops_utilisation']:.0%}"])
    return f"{table(head, rows)}\n\n{_stamp(result)}"


GOALS = (
    *((name, "float32", "time", 1.0) for name in ("adamw_sn", "adam_mini")),
    ("sgd_boost", "float32", "time", 0.8),
    ("rmsprop_sn", "float32", "time", 0.65),
    *((name, "bfloat16", "time", 1.5) for name in ("adamw_sn", "adam_mini", "sgd_boost")),
    *(("galore", dtype, "speed-up", goal) for dtype, goal in (("float32", 1.6), ("bfloat16", 2.5))),
    *(("continuous", dtype, "speed-up", goal) for dtype, goal in (("float32", 3.5), ("bfloat16", 4.0))),
    *(("ldadam", dtype, "speed-up", goal) for dtype, goal in (("float32", 1.5), ("bfloat16", 3.0))),
)
"""What an optimizer step should reach: method, weights, figure, bound (of time from above, of speed-up from below)."""


def goals(result: Result) -> str:
    """What was aimed at, and what was measured, in this run and in one at another speed of memory."""
    other = RESULTS / "optimizer_step_slow_memory.json"
    runs = [result, *([json.loads(other.read_text())] if other.exists() else [])]
    rows = []
    for method, dtype, figure, goal in GOALS:
        sign, lower = ("at most", True) if figure == "time" else ("at least", False)
        values = [_goal_figure(run, method, dtype, figure) for run in runs]
        rows.append([method, dtype, f"{figure} {sign} {goal}", *(_judged(value, goal, lower) for value in values)])
    bases = [run["refresh_seconds"]["svd"] / run["refresh_seconds"]["randomized"] for run in runs]
    rows.append(["bases of the model", "float32", "speed-up at least 8", *(_judged(b, 8, False) for b in bases)])
    speeds = [statistics.median(row["bandwidth"] for row in run["rows"]) / 1e9 for run in runs]
    return table(["step", "weights", "goal", *(f"at {speed:.0f} GB/s" for speed in speeds)], rows)


def _goal_figure(run: Result, method: str, dtype: str, figure: str) -> float | None:
    found = [r for r in run["rows"] if (r["method"], r["dtype"]) == (method, dtype)]
    row = next((r for r in found if not r["peer"].startswith("package")), None)
    if row is None or figure == "time":
        return row and row["ratio"]
    return row.get("speedup_amortised", 1 / row["ratio"])


def _judged(value: float | None, goal: float, lower: bool) -> str:
    if value is None:
        return "not measured"
    return f"{value:.2f}, {'met' if (value <= goal if lower else value >= goal) else 'not met'}"


def whole_run(result: Result) -> str:
    """Data, evaluation, start, bytes between processes, growth with size."""
    parts, lines = result["parts"], []
    if data := parts.get("data"):
        waits, rate = data["data_share"], data["training_tokens_per_second"]
        share, worst = statistics.median(waits), max(waits)
        lines.append(f"- Waiting for data: {share:.2%} of an update (median of {len(waits)}; worst {worst:.2%}).")
        lines.append(
            f"- Tokenizing pipeline alone, one worker: {data['pipeline_tokens_per_second']:,.0f} tokens/s, "
            f"{data['pipeline_over_training']:.1f} times the {rate:,.0f} tokens/s of training."
        )
        lines.append(f"- Evaluation: {data['evaluation_over_training']:.1f} times the training rate.")
    if start := parts.get("start"):
        lines.append(f"- Start, caches warm: {start['seconds']:.1f} s from the command ({start['includes']}).")
    for name, case in parts.get("processes", {}).items():
        if isinstance(case, dict):
            lines.append(
                f"- {name}: {case['seconds_on_1']:.2f} s an update on one process, {case['seconds_on_2']:.2f} s on two "
                f"with twice the rows, {case['communication_seconds']:.2f} s of it communication; "
                f"{case['sent_mib']:.1f} MiB sent by each."
            )
    if scaling := parts.get("scaling"):
        sizes = scaling["sizes"].items()
        seconds = ", ".join(f"{size} {f['seconds']:.2f} s" for size, f in sizes)
        lines.append(f"- An update of {scaling['tokens']} tokens: {seconds}; exponent {scaling['exponent']:.2f}.")
        _growth([f["parameters"] for _, f in sizes], [f["seconds"] for _, f in sizes], scaling["exponent"])
        lines.append("\n![Seconds of an update over parameters](figures/scaling.png)")
    return "\n".join([*lines, "", _stamp(result)])


def gpu(result: Result) -> str:
    """Everything a GPU run has left, part by part."""
    text = [f"Limits: {', '.join(f'{k} {v:.3g}' for k, v in result['limits'].items())}."] if "limits" in result else []
    for part in ("optimizer", "training", "per_layer"):
        cases = {name: _numbers(case) for name, case in result.get(part, {}).items()}
        keys = sorted({key for case in cases.values() for key in case})
        rows = [[name, *(case.get(key, "") for key in keys)] for name, case in cases.items()]
        text.append(table([part, *keys], rows) if rows else f"{part}: left out.")
    if left := result.get("left_out"):
        text.append(f"Left out for time: {', '.join(left)}.")
    return "\n\n".join([*text, _stamp(result)])


def _numbers(case: Result) -> dict[str, str]:
    """Figures of a case, those of nested tables too, and an error in words."""
    flat = {f"{k} {inner}": v for k, value in case.items() if isinstance(value, dict) for inner, v in value.items()}
    flat |= {k: v for k, v in case.items() if not isinstance(v, dict)}
    return {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in flat.items() if isinstance(v, float | str)}


SECTIONS: dict[str, tuple[str, str, Callable[[Result], str]]] = {
    "optimizer_step": ("optimizer_step", "python -m benchmarks.optimizer_step", optimizer_step),
    "goals": ("optimizer_step", "python -m benchmarks.optimizer_step", goals),
    "training": ("training", "python -m benchmarks.training", training),
    "training_60m": ("training_60m", "python -m benchmarks.training --models llama_60m --name training_60m", training),
    "whole_run": ("whole_run", "python -m benchmarks.whole_run", whole_run),
    "gpu": ("gpu", "bash scripts/gpu_benchmarks.sh", gpu),
}
"""Name in the template -> (result file, command that writes it, what makes its text)."""


def render(template: str) -> str:
    """The template with every name replaced. Raises KeyError for a name that is no section."""
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: _section(match[1]), template)
    return "\n".join(_wrapped(line) for line in text.split("\n"))


def _wrapped(line: str) -> str:
    """Prose at most 120 wide; tables as they are."""
    if len(line) <= 120 or line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _section(name: str) -> str:
    file, command, make = SECTIONS[name]
    path = RESULTS / f"{file}.json"
    return make(json.loads(path.read_text())) if path.exists() else f"Not measured yet: `{command}` writes it."


def _stamp(result: Result) -> str:
    stamp = result["stamp"]
    clock = {"process_time": ", CPU seconds", "cpu": ", CPU seconds"}.get(str(result.get("clock")), "")
    where = stamp["gpu"] or f"{stamp['processor']}, {stamp['threads']} of {stamp['cores']} cores{clock}"
    versions = f"torch {stamp['versions']['torch']}"
    return (
        f"({where}; load {stamp['load_average']:.1f}; {versions}; {stamp['time'][:10]}, commit {stamp['commit'][:9]}.)"
    )


def _bar_label(row: Result) -> str:
    against = " / its package" if row["peer"].startswith("package") else ""
    return f"{row['method']} {row['dtype'].replace('float', 'fp').replace('bfp', 'bf')}{against}"


def _bars(name: str, labels: list[str], values: list[float], title: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(labels) + 1))
    axes.barh(labels, values, color="#4477aa")
    axes.axvline(1.0, color="#666666", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    _save(figure, name)


def _growth(sizes: list[float], seconds: list[float], exponent: float) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.5))
    axes.loglog(sizes, seconds, "o", color="#4477aa", label="measured")
    fitted = [seconds[0] * (size / sizes[0]) ** exponent for size in sizes]
    axes.loglog(sizes, fitted, color="#666666", linewidth=1, label=f"exponent {exponent:.2f}")
    axes.set_xlabel("parameters, without the embedding")
    axes.set_ylabel("seconds of an update")
    axes.legend()
    _save(figure, "scaling")


def _save(figure: Any, name: str) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(FIGURES / f"{name}.png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Write the document and its plots."""
    DOCUMENT.write_text(render(TEMPLATE.read_text()))
    print(Path(DOCUMENT).relative_to(ROOT))


if __name__ == "__main__":
    main()
