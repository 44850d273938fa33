"""Published results: the data is sound, and a run stands beside a figure only under the figure's own protocol."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from optimizers.engine import registry
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.report import published
from peft_pretraining.report.page import make_report
from peft_pretraining.report.protocol import compare_settings
from peft_pretraining.report.published import (
    Result,
    default_baseline,
    methods,
    own_baseline,
    protocols,
    published_names,
)
from peft_pretraining.report.published import results as all_results
from peft_pretraining.report.runs import RunRecord, find_runs, read_run
from tests.peft_pretraining.made_runs import make_run
from tests.tiny_runs import ROOT

PROTOCOL = (
    f"--model_config {ROOT}/configs/llama_60m.json --dataset c4 --total_batch_size 512 --batch_size 256 "
    "--num_training_steps 10000 --evaluation published --optimizer galore_adamw --lr 0.01 --rank 128 --dtype bfloat16 "
    "--weight_rounding nearest"
).split()


def settings(*more: str) -> dict[str, object]:
    sections = parse_config([*PROTOCOL, *more]).to_dict()
    return {"tokenizer": "t5-base"} | {
        flag: value
        for values in sections.values()
        for flag, value in values.items()
        if (flag, value) != ("tokenizer", None)
    }


def result(paper: str, method: str, model: str, metric: str = "validation perplexity") -> Result:
    (found,) = [
        r
        for r in all_results()
        if (r.paper, r.method, r.model, r.metric) == (paper, method, model, metric)
        and r.steps in (10_000, 100_000, None)
    ]
    return found


def differences(settings: dict[str, object], figure: Result) -> list[str]:
    return compare_settings(settings, figure).sentences()


def test_every_figure_has_a_source_and_a_known_protocol() -> None:
    assert len(all_results()) == 520
    assert all(r.source and r.value >= 0 and r.reported_by in ("the paper", "another paper") for r in all_results())
    assert {r.protocol for r in all_results()} - {None} == set(protocols())
    perplexities = [r for r in all_results() if r.metric in ("validation perplexity", "training perplexity")]
    assert all(r.protocol for r in perplexities)


def test_names_are_those_of_the_papers_and_of_the_optimizers() -> None:
    printed = {r.method for r in all_results()}
    assert {name for entry in methods() for name in entry["published"]} <= printed
    assert {name for entry in methods() for name in entry["optimizers"]} <= set(registry.available())
    assert default_baseline() in registry.available()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--optimizer", "adamw"], "Full-Rank Adam"),
        (["--optimizer", "adamw_sn"], "AdamSN"),
        (["--optimizer", "adamw_sn", "--beta1", "0"], "RMSPropSN"),
        (["--optimizer", "galore_adamw"], "GaLore"),
        (["--optimizer", "galore_adamw", "--proj_type", "continuous"], "OSD"),
        (["--optimizer", "galore_adamw8bit_per_layer"], "8-bit GaLore"),
        (["--optimizer", "galore_adamw", "--proj_type", "random"], None),
        (["--optimizer", "adamw_sng"], None),
    ],
)
def test_a_run_is_known_by_its_published_name(words: list[str], name: str | None) -> None:
    names = published_names(settings(*words) if "rank" in str(words) else without_rank(words))
    assert (name in names) if name else names == []


def without_rank(words: Sequence[str]) -> dict[str, object]:
    sections = parse_config([*PROTOCOL[: PROTOCOL.index("--optimizer")], *words]).to_dict()
    return {flag: value for values in sections.values() for flag, value in values.items()}


def test_the_same_protocol_has_no_differences() -> None:
    assert differences(settings(), result("GaLore", "GaLore", "60M")) == []


def test_rounding_says_nothing_of_weights_that_are_not_rounded() -> None:
    own = settings("--dtype=float32", "--weight_rounding=stochastic")
    assert differences(own, result("GaLore", "GaLore", "60M")) == ["dtype float32, published bfloat16"]


DEVIATIONS = {
    "--dataset=builtin": "dataset builtin, published c4",
    "--tokenizer=gpt2": "tokenizer gpt2, published t5-base",
    "--max_length=512": "tokens a row 512, published 256",
    "--packing": "packing True, published False",
    "--total_batch_size=256": "rows per update 256, published 512",
    "--num_training_steps=5000": "updates 5,000, published 10,000",
    "--evaluation=exact": "divides by one batch too many",
    "--eval_tokens=1M": "evaluation tokens 1,000,000, published 10,000,000",
    "--rank=64": "rank 64, published 128",
    "--lr=0.02": "lr 0.02, published 0.01",
    f"--model_config={ROOT}/configs/llama_9m.json": "model 9M, published 60M",
    "--dtype=float32": "dtype float32, published bfloat16",
    "--scheduler=linear --min_lr_ratio=0.1": "scheduler linear, published cosine",
    "--warmup_steps=100": "warm-up share 0.01, published 0.1",
    "--min_lr_ratio=0": "min_lr_ratio 0, published 0.1",
    "--weight_decay=0.1": "weight decay 0.1, published 0",
    "--grad_clipping=1": "gradient clipping 1, published 0",
    "--weight_rounding=stochastic": "rounding of the weights stochastic, published nearest",
    "--galore_scale=1": "galore_scale 1, published 0.25",
    "--update_proj_gap=500": "update_proj_gap 500, published 200",
    "--beta1=0.8": "beta1 0.8, published 0.9",
    "--beta2=0.99": "beta2 0.99, published 0.999",
    "--eps=1e-8": "eps 1e-08, published 1e-06",
    "--rotate_moments": "rotate_moments True, published False",
    "--stagger_refresh": "stagger_refresh True, published False",
    "--state_dtype=int8": "state_dtype int8, published unquantized",
}


@pytest.mark.parametrize("flag", DEVIATIONS, ids=[flag.split("=")[0] for flag in DEVIATIONS])
def test_every_deviation_is_named(flag: str) -> None:
    own = settings(*flag.split()) | ({"tokenizer": "builtin"} if "builtin" in flag else {})
    own = own | ({"tokenizer": "t5-base"} if "builtin" in flag else {})
    (said,) = differences(own, result("GaLore", "GaLore", "60M"))
    assert DEVIATIONS[flag] in said


def test_a_protocol_that_is_not_stated_never_matches() -> None:
    (*_, said) = differences(settings(), result("SCALE", "GaLore", "60M"))
    assert said.startswith("not stated by the source: tokenizer, ")
    for name in ("dtype", "warm-up", "gradient clipping", "rounding of the weights", "lr", "rank", "galore_scale"):
        assert name in said
    training = result("OSD", "GaLore (8bit)", "60M", "training perplexity")
    assert "published: training perplexity" in differences(settings(), training)


@pytest.mark.parametrize(
    ("paper", "method", "model", "baseline", "value"),
    [
        ("GaLore", "GaLore", "60M", "Full-Rank Adam", 34.06),
        ("SN-SM", "AdamSN", "1B", "Adam", 16.0),
        ("SCALE", "GaLore", "60M", "Adam", 30.05),
        ("Adam-mini", "Adam-mini", "39M", "AdamW", 40.795),
    ],
)
def test_each_paper_has_its_own_baseline(paper: str, method: str, model: str, baseline: str, value: float) -> None:
    candidates = [r for r in all_results() if (r.paper, r.method, r.model) == (paper, method, model)]
    found = own_baseline(next(r for r in candidates if r.metric == "validation perplexity"))
    assert found is not None and (found.method, found.value) == (baseline, value)


def run_of(folder: Path, *more: str) -> RunRecord:
    """A finished run under the published protocol, by what its run.json says."""
    made = make_run(folder, "--optimizer", "adamw", loss=3.55)
    saved = parse_config([*PROTOCOL, *more]).to_dict()
    saved["training"]["num_training_steps"] = 40  # as many as the made-up metrics have
    (made / "run.json").write_text(json.dumps(saved))
    return read_run(made)


def test_the_report_sets_side_by_side_what_matches_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up run has 40 updates; a figure for 40 updates is one that it may stand beside."""
    figure = result("GaLore", "GaLore", "60M")
    short = Result(**{**vars(figure), "steps": 40, "value": 35.5})
    monkeypatch.setattr("peft_pretraining.report.published_figures.results", lambda: (figure, short))
    run_of(tmp_path / "run")
    (section,) = make_report(find_runs([tmp_path]), "title", "adamw").sections
    tables = {table.name: table for table in section.tables}
    ((_, measured, value, _, named, _),) = tables["published"].rows
    assert (measured, value, named) == ("34.81", "35.5", "GaLore, GaLore")
    ((_, named, reasons, value, baseline, _),) = tables["not-comparable"].rows
    assert (named, reasons, value) == ("GaLore, GaLore, 60M", "updates 40, published 10,000", "34.88")
    assert baseline == "34.06 (Full-Rank Adam)"
    assert "too low" in section.result.note


def test_the_data_travels_with_the_package() -> None:
    from importlib.resources import files

    assert {"results.csv", "protocols.json", "methods.json"} <= {
        path.name for path in files(published.__name__).iterdir()
    }
