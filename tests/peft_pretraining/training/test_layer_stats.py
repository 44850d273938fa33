"""--log_details in real runs: which columns appear when, that they are true, and that nothing happens without it."""

import json
from pathlib import Path

import pytest
import torch

from optimizers.engine import diagnostics
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.tracking.metrics import read_metrics
from peft_pretraining.training.step import train_step
from peft_pretraining.training.timer import Timer
from tests.peft_pretraining.training.test_step import built
from tests.tiny_runs import flags, records, train, train_here

DETAILS = ("--log_details", "true", "--details_every", "5")
PROJECTED = ("--optimizer", "galore_adamw", "--rank", "8", "--update_proj_gap", "3")
LAYER = "layers.1.self_attn.q_proj"


def columns(record: dict) -> set[str]:
    return {key.partition("/")[0] for key in record if "/" in key}


def test_every_layer_is_reported_when_it_is_due(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", *PROJECTED, *DETAILS) == 0
    updates = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    norms = {"gradient_rms", "update_rms", "update_norm", "weight_norm"}
    moments = {"second_moment_min", "second_moment_mean", "second_moment_max"}
    for record in updates:
        due, refreshed = record["update_step"] in (1, 5, 10), record["update_step"] in (4, 7, 10)
        expected = norms | moments | {"effective_rank", "captured_energy", "lr"} if due else set()
        assert columns(record) == expected | ({"basis_drift"} if refreshed else set()), record["update_step"]
    first = updates[0]
    assert 1 <= first[f"effective_rank/{LAYER}"] <= 8 and 0 < first[f"captured_energy/{LAYER}"] <= 1 + 1e-6
    assert {"weight_norm/embed_tokens", "weight_norm/lm_head", "weight_norm/norm"} <= set(first)


@pytest.mark.parametrize(
    "method",
    [
        ("--optimizer", "adamw"),
        ("--optimizer", "muon"),
        ("--optimizer", "adafactor"),
        ("--optimizer", "adamw_sn", "--execution", "eager"),
        ("--optimizer", "adamw_sn", "--per_layer", "true", "--batch_size", "8"),
        PROJECTED,
    ],
    ids=lambda words: "-".join(words[1::2]),
)
def test_the_norms_are_those_of_the_weights_before_and_after(tmp_path: Path, method: tuple[str, ...]) -> None:
    with built(tmp_path / "run", *method, *DETAILS, "--grad_clipping", "1") as run:
        before = {name: p.detach().clone() for p, name in run.state.names.items()}
        figures = train_step(run).details
        for param, name in run.state.names.items():
            change, short = param.detach() - before[name], name.removeprefix("model.").removesuffix(".weight")
            assert figures[f"update_norm/{short}"] == pytest.approx(float(change.norm()), rel=1e-4, abs=1e-9)
            assert figures[f"weight_norm/{short}"] == pytest.approx(float(param.detach().norm()), rel=1e-5)
        whole = torch.cat([(p.detach() - before[name]).flatten() for p, name in run.state.names.items()])
        assert figures["update_norm/total"] == pytest.approx(float(whole.norm()), rel=1e-4)
        squares = [
            figures[f"gradient_rms/{name.removeprefix('model.').removesuffix('.weight')}"] ** 2 * p.numel()
            for p, name in run.state.names.items()
        ]
        if "--per_layer" not in method:
            assert sum(squares) ** 0.5 <= 1 + 1e-4, "what the method sees is clipped"
        assert train_step(run).details == {}


def test_without_the_flag_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trap(*_: object, **__: object) -> None:
        raise AssertionError("a figure was computed though nobody asked")

    for name in ("Observer", "frame", "norm", "rms", "changes", "second_moments"):
        monkeypatch.setattr(diagnostics, name, trap)
    for index, method in enumerate((PROJECTED, ("--optimizer", "adamw"))):
        with built(tmp_path / str(index), *method) as run:
            assert run.details is None
            assert train_step(run).details == {}
            assert not run.optimizer._optimizer_step_pre_hooks
    assert train_here(tmp_path / "run", *PROJECTED, updates=4) == 0
    assert all("/" not in key for record in records(tmp_path / "run") for key in record)


def test_looking_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    assert train_here(tmp_path / "looked", *PROJECTED, *DETAILS, updates=8) == 0
    assert train_here(tmp_path / "plain", *PROJECTED, updates=8) == 0
    looked = [{k: v for k, v in r.items() if "/" not in k} for r in records(tmp_path / "looked")]
    assert looked == records(tmp_path / "plain")


def test_a_continued_run_reports_the_same_details(tmp_path: Path) -> None:
    """The refresh after the checkpoint is compared with the basis in it."""
    assert train_here(tmp_path / "run", *PROJECTED, *DETAILS) == 0
    source = ("--continue_from", str(tmp_path / "run" / "model_8"))
    assert train_here(tmp_path / "more", *PROJECTED, *DETAILS, *source) == 0
    assert records(tmp_path / "more") == records(tmp_path / "run")
    assert any("basis_drift" in columns(record) for record in records(tmp_path / "more")[-4:])


def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    """Also the time they spent on waiting for and sending to each other."""
    more = (*PROJECTED, *DETAILS, "--grad_clipping", "1")
    assert train_here(tmp_path / "one", *more, updates=5) == 0
    done = train(tmp_path / "two", *more, processes=2, updates=5)
    assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("one", "two"))
    assert columns(one) == columns(two)
    details = [key for key in one if "/" in key]
    assert [two[key] for key in details] == pytest.approx([one[key] for key in details], rel=1e-3, abs=1e-6)
    assert "communication_seconds" not in one
    for record in read_metrics(tmp_path / "two" / "metrics.jsonl"):
        if "loss" in record:
            parts = [value for key, value in record.items() if key.endswith("_seconds") and key != "step_seconds"]
            assert record["communication_seconds"] > 0 and record["sent_mib"] > 0
            assert min(parts) >= 0 and sum(parts) <= record["step_seconds"] + 1e-3
    sizes = [
        json.loads((tmp_path / name / "summary.json").read_text())["optimizer_state_bytes"] for name in ("one", "two")
    ]
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--log_details", "true", "--parallel", "fsdp"), "--parallel ddp"),
        (("--details_every", "5"), "--log_details"),
        ((*DETAILS[:3], "0"), "--details_every 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_config(flags(tmp_path / "run", *more), world_size=2)


def test_the_summary_states_the_bytes_of_the_state(tmp_path: Path) -> None:
    with built(tmp_path / "run", *PROJECTED) as run:
        expected = run.optimizer.state_bytes()  # type: ignore[attr-defined]
        elements = sum(p.numel() for p in run.state.names)
    for name, method in (("galore", PROJECTED), ("adamw", ("--optimizer", "adamw"))):
        assert train_here(tmp_path / name, *method, updates=2) == 0
    found = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("galore", "adamw")]
    assert found[0]["optimizer_state_bytes"] == expected
    assert 0 <= found[1]["optimizer_state_bytes"] - 8 * elements <= 1000, "two float32 moments, and the step counters"


def test_a_phase_within_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 4.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr("peft_pretraining.training.timer.time.perf_counter", lambda: next(times))
    clock = Timer(torch.device("cpu"))
    with clock("optimizer"), clock("communication"):
        pass
    with clock("communication"):
        pass
    assert clock.read() == {"optimizer": 7.0, "communication": 4.0}
