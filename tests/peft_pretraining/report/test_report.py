"""The report: what it compares, what it warns of, and that the page and its parts are complete and readable."""

import csv
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev

import numpy
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.stats import ttest_ind

from peft_pretraining.report.__main__ import main
from peft_pretraining.report.arms import Task, make_tasks
from peft_pretraining.report.comparison import cautions, compare
from peft_pretraining.report.curves import evaluation_curve, phases, training_curve
from peft_pretraining.report.drawing import PALETTE, Plot, log_scale, styles
from peft_pretraining.report.page import make_report
from peft_pretraining.report.runs import find_runs, read_run
from tests.peft_pretraining.made_runs import UPDATES, make_run

LOSSES = {
    ("adamw", 1e-3): (4.0, 4.02, 4.01),
    ("adamw", 1e-2): (4.5,),
    ("adamw", 1e-4): (5.0,),
    ("adamw_sn", 0.05): (3.8, 3.81, 3.82),
    ("adamw_sn", 0.5): (4.2,),
    ("adamw_sn", 0.005): (4.4,),
    ("lion", 1e-4): (4.03, 3.99, 4.04),
    ("lion", 1e-3): (4.9,),
    ("lion", 1e-5): (4.3,),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at three learning rates, three seeds at the best; a diverged and an unfinished run."""
    folder = tmp_path_factory.mktemp("sweep")
    for (name, lr), losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            words = ("--optimizer", name, "--lr", str(lr), "--seed", str(seed))
            details = ["lr/linear", "lr/norm"] if name == "adamw_sn" else []
            make_run(folder / f"{name}-{lr}-{seed}", *words, loss=loss, details=details)
    make_run(folder / "diverged", "--optimizer", "adamw", "--lr", "1", loss=None)
    make_run(folder / "unfinished", "--optimizer", "adamw", "--lr", "0.5", done=30)
    return folder


@pytest.fixture(scope="module")
def task(sweep: Path) -> Task:
    (task,) = make_tasks(find_runs([sweep]))
    return task


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all of it, as the command writes it."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert main([str(sweep), "-o", str(output)]) == 0
    return output


def test_each_method_is_taken_at_its_best_learning_rate(task: Task) -> None:
    assert {arm.label: arm.lr for arm in task.arms} == {"adamw": 1e-3, "adamw_sn": 0.05, "lion": 1e-4}
    assert [len(arm.chosen) for arm in task.arms] == [3, 3, 3]


def test_the_best_learning_rate_is_chosen_on_seeds_that_all_have(tmp_path: Path) -> None:
    """A lucky seed that only one rate has must not decide."""
    for lr, seed, loss in [("0.1", 0, 4.1), ("0.2", 0, 4.2), ("0.2", 1, 3.0)]:
        make_run(tmp_path / f"{lr}-{seed}", "--optimizer", "adamw", "--lr", lr, "--seed", str(seed), loss=loss)
    (task,) = make_tasks(find_runs([tmp_path]))
    assert task.arms[0].lr == 0.1


def test_mean_spread_and_significance_are_those_of_the_losses(task: Task) -> None:
    rows = {row.arm.label: row for row in compare(task, "adamw")}
    sn = [math.exp(loss) for loss in LOSSES["adamw_sn", 0.05]]
    base = [math.exp(loss) for loss in LOSSES["adamw", 1e-3]]
    assert rows["adamw_sn"].perplexity == pytest.approx(fmean(sn))
    assert rows["adamw_sn"].spread == pytest.approx(stdev(sn))
    assert rows["adamw_sn"].difference == pytest.approx(fmean(sn) / fmean(base) - 1)
    raw = [
        ttest_ind(LOSSES[key], LOSSES["adamw", 1e-3], equal_var=False).pvalue
        for key in (("adamw_sn", 0.05), ("lion", 1e-4))
    ]
    assert raw[0] < raw[1], "the smaller of two is doubled, the larger stays"
    assert rows["adamw_sn"].p == pytest.approx(2 * raw[0])
    assert rows["lion"].p == pytest.approx(max(2 * raw[0], raw[1]))
    assert (rows["adamw_sn"].mark, rows["lion"].mark, rows["adamw"].mark) == ("*", "", "")
    assert (rows["adamw"].p, rows["adamw"].difference) == (None, None)


def test_single_seeds_are_not_tested(tmp_path: Path) -> None:
    for name in ("adamw", "lion"):
        make_run(tmp_path / name, "--optimizer", name)
    (task,) = make_tasks(find_runs([tmp_path]))
    assert all(row.p is None and row.spread is None for row in compare(task, "adamw"))
    assert any("seeds" in caution for caution in cautions(task, "adamw"))


def test_what_weakens_a_comparison_is_said(task: Task, tmp_path: Path) -> None:
    said = " ".join(cautions(task, "adamw"))
    assert f"diverged is left out of tables: its last loss is not finite (update {UPDATES} of {UPDATES})" in said
    assert f"unfinished is left out of tables: not finished (update 30 of {UPDATES})" in said
    assert "edge" not in said and "Unequal" not in said
    assert "nothing is tested" in " ".join(cautions(task, "muon"))
    for lr, loss in (("0.1", 4.0), ("0.2", 3.9)):
        make_run(tmp_path / lr, "--optimizer", "adamw", "--lr", lr, loss=loss)
    make_run(tmp_path / "lion", "--optimizer", "lion")
    (other,) = make_tasks(find_runs([tmp_path]))
    said = " ".join(cautions(other, "adamw"))
    assert "adamw: the best learning rate 0.2 is at the edge" in said
    assert "Unequal budgets" in said and "adamw 2, lion 1" in said


def test_runs_of_other_tasks_are_kept_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "--optimizer", "adamw")
    make_run(tmp_path / "b", "--optimizer", "adamw", "--max_length", "128")
    make_run(tmp_path / "c", "--optimizer", "adamw", "--batch_size", "8", "--gradient_accumulation", "2")
    first, second = make_tasks(find_runs([tmp_path]))
    assert [len(first.arms[0].runs), len(second.arms[0].runs)] == [2, 1]
    report = make_report(find_runs([tmp_path]), "two tasks", "adamw")
    names = [plot.name for section in report.sections for plot in section.plots]
    assert len(set(names)) == len(names)


def test_methods_of_one_optimizer_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "--optimizer", "adamw_sn", method="sn")
    make_run(tmp_path / "b", "--optimizer", "adamw_sn", "--beta1", "0")
    make_run(tmp_path / "c", "--optimizer", "adamw_sn", "--beta1", "0.5", "--grad_clipping", "1")
    (task,) = make_tasks(find_runs([tmp_path]))
    labels = [arm.label for arm in task.arms]
    assert labels == ["sn", "adamw_sn (beta1 0.0, grad_clipping 0.0)", "adamw_sn (beta1 0.5, grad_clipping 1.0)"]


def test_curves_are_means_over_seeds(task: Task) -> None:
    runs = next(arm for arm in task.arms if arm.label == "adamw").chosen
    curve = training_curve(runs, "loss", "tokens")
    assert curve is not None
    assert curve.x[-1] == 100 * UPDATES
    assert curve.mean[-1] == pytest.approx(fmean(LOSSES["adamw", 1e-3]))
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((4.0, 4.02))
    seconds, losses = evaluation_curve(runs, "seconds")
    assert list(seconds) == [40.0, 80.0]
    assert losses[-1] == pytest.approx(fmean(LOSSES["adamw", 1e-3]))
    times = phases(runs)
    assert times == pytest.approx({"data": 0.1, "forward": 0.5, "backward": 1.0, "optimizer": 0.2, "rest": 0.2})


def test_a_long_run_is_drawn_with_few_points(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", "--optimizer", "adamw"))
    longer = type(run)(run.folder, run.settings, None, run.updates * 100, run.evaluations)
    curve = training_curve([longer], "loss", "updates")
    assert curve is not None and len(curve.x) == 200


def test_state_bytes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "run", "--optimizer", "adamw")).state_bytes == 10 * 5 * 4 + 7


PARTS = ("loss-tokens", "loss-updates", "loss-seconds", "perplexity", "learning-rate", "state-bytes", "peak-memory")


def test_details_fill_figures_of_norms_and_of_each_kind(tmp_path: Path) -> None:
    """Columns that only some updates have are drawn through their gaps."""
    folder = make_run(tmp_path / "run", "--optimizer", "adamw", details=["weight_norm/a", "weight_norm/total"])
    make_run(tmp_path / "other", "--optimizer", "lion")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in r.items() if "/" not in k or r["update_step"] % 10 == 0} for r in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (section,) = make_report(find_runs([tmp_path]), "details", "adamw").sections
    plots = {plot.name: plot for plot in section.plots}
    assert {"weight-norm", "detail-weight_norm"} <= set(plots) and "update-norm" not in plots
    curve = training_curve([read_run(folder)], "weight_norm/total", "updates")
    assert curve is not None
    assert [list(values) for values in curve.known()] == [[10, 20, 30, 40], [5, 10, 15, 20]]
    for name in ("weight-norm", "detail-weight_norm"):
        plots[name].save(tmp_path)
        paths = ElementTree.parse(tmp_path / f"{name}.svg").iter("{http://www.w3.org/2000/svg}path")
        drawn = [path.get("d", "").count("L") for path in paths if "clip-path" in path.attrib]
        assert 3 in drawn, "a line through the four points"


def drawn_lines(plot: Plot) -> list[tuple[str, list[float], list[float]]]:
    """Label, x and y of every line of a figure of one panel."""
    plot.draw(figure := Figure())
    return [(str(line.get_label()), list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]


def test_details_of_many_layers_are_drawn_by_role(tmp_path: Path) -> None:
    """The value of part i is update / (1 + i): a role's line is the median over its layers."""
    parts = [f"layers.{layer}.{name}" for layer in range(12) for name in ("q_proj", "mlp.up_proj")] + ["lm_head"]
    make_run(tmp_path / "run", "--optimizer", "adamw", details=[f"gradient_rms/{part}" for part in parts])
    runs = find_runs([tmp_path])
    for every_layer, labels in ((False, ["q_proj", "mlp.up_proj", "lm_head"]), (True, parts)):
        (section,) = make_report(runs, "details", "adamw", every_layer).sections
        (plot,) = [plot for plot in section.plots if plot.name == "detail-gradient_rms"]
        lines = {label: (x, y) for label, x, y in drawn_lines(plot)}
        assert list(lines) == labels
        name, places = ("q_proj", range(0, 24, 2)) if not every_layer else (parts[3], [3])
        x, y = lines[name]
        assert x == list(range(1, UPDATES + 1))
        assert y == pytest.approx([update * median(1 / (1 + i) for i in places) for update in x])


def test_numbers_at_a_logarithmic_axis_are_plain() -> None:
    axes = (figure := Figure()).add_subplot()
    log_scale(axes.yaxis)
    for low, high, some in ((1e-6, 1e3, "0.01"), (0.3, 0.5, "0.4"), (0.331, 0.339, "0.334")):
        axes.set_ylim(low, high)
        figure.draw_without_rendering()
        named = [label.get_text() for label in axes.get_yticklabels(which="both")]
        assert some in named and not any("$" in text for text in named), named


def test_every_plot_and_table_is_a_file_of_its_own(page: Path) -> None:
    parts = page.with_name("report_files")
    for name in (*PARTS, "step-time", "grad-norm", "detail-lr"):
        assert (parts / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(parts / f"{name}.svg").getroot().tag.endswith("svg")
    rows = list(csv.DictReader((parts / "perplexity.csv").open()))
    assert [row["method"] for row in rows] == ["adamw_sn", "adamw", "lion"]
    assert rows[0]["perplexity"].startswith("45.15 ± 0.45*")
    assert (parts / "perplexity.md").read_text().count("\n") == 5
    latex = (parts / "perplexity.tex").read_text()
    assert "\\toprule" in latex and "adamw\\_sn" in latex
    assert "eps,1e-06,1e-08,–" in (parts / "differences.csv").read_text()


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"<(?:link|img|iframe|object|embed)\b", text) == []
    assert re.findall(r"""(?:src|href)=["'](?!#)[^"']*""", text) == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []
    assert page.stat().st_size < 1_000_000
    assert text.count("<svg") == 10
    for name in PARTS:
        assert f'id="{name}"' in text


def test_the_page_has_each_id_once_and_no_dangling_reference(page: Path) -> None:
    text = page.read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert sorted(ids) == sorted(set(ids))
    assert {target for target in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text)} <= set(ids)


def test_labels_cannot_become_markup(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "--optimizer", "adamw", method="<b onclick=x>&")
    html = make_report(find_runs([tmp_path]), "<i>title", "adamw").html()
    assert "<b onclick" not in html and "<i>title" not in html


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("paper", ["#ffffff", "#14171a"])
def test_colours_are_seen_on_light_and_dark(paper: str) -> None:
    """WCAG asks for 3:1 between a graphical object and what lies under it."""
    for color in PALETTE:
        bright, dark = sorted((luminance(color), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 3, color


def test_more_arms_than_colours_differ_in_line() -> None:
    looks = [(style.color, style.line) for style in styles([str(n) for n in range(20)]).values()]
    assert len(set(looks)) == 20


def test_wrong_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in (said := capsys.readouterr().err) and "run.json" in said
    run = make_run(tmp_path / "run", "--optimizer", "adamw")
    assert main([str(run), "-o", str(tmp_path / "no" / "such" / "page.html")]) == 0
    (run / "run.json").write_text("{")
    assert main([str(run)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_a_folder_of_unfinished_runs_still_makes_a_page(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "--optimizer", "adamw", done=3)
    html = make_report(find_runs([tmp_path]), "early", "adamw").html()
    assert "not finished (update 3 of 40)" in html


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def screenshot(page: Path, picture: Path, *more: str) -> numpy.ndarray:
    """Pixels of the page in a headless browser, grey from 0 to 1."""
    assert BROWSER is not None
    quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    words = [*quiet.split(), "--disable-component-update", "--enable-logging=stderr", "--window-size=1200,2400"]
    profile = f"--user-data-dir={picture.with_suffix('.profile')}"
    done = subprocess.run(
        [BROWSER, *words, profile, *more, f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.exists(), done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return imread(picture)[:, :, :3].mean(2)


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(page: Path, scheme: str, tmp_path: Path) -> None:
    """The page's paper is light or dark, and everything on it is drawn in what contrasts with it."""
    more: Sequence[str] = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    pixels = screenshot(page, tmp_path / "page.png", *more)
    paper = float(numpy.median(pixels))
    assert paper > 0.95 if scheme == "light" else paper < 0.15
    for stripe in numpy.array_split(pixels[:1200], 4):
        assert 0.01 < (abs(stripe - paper) > 0.3).mean() < 0.4, "a stripe of the page is empty or covered"
