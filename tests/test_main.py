"""The main script as users start it: real processes, real text."""

import json
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, inputs, losses, records, train, train_here


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_main_is_short_and_reads_as_a_story() -> None:
    assert len((ROOT / "torchrun_main.py").read_text().splitlines()) < 80


def test_every_update_and_evaluation_has_its_line(single: Path) -> None:
    lines = records(single)
    assert [line["update_step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["update_step"] for line in lines if "eval_loss" in line] == [4, 8, 12]
    first = json.loads((single / "metrics.jsonl").read_text().splitlines()[0])
    for key in ("lr", "grad_norm", "tokens_seen", "tokens_per_second", "step_seconds", "data_seconds"):
        assert first[key] >= 0
    assert first["lr"] > 0 and first["peak_memory_mib"] > 0
    assert losses(single)[-1] < losses(single)[0] - 0.2


def test_the_run_folder_holds_configuration_summary_and_curve(single: Path) -> None:
    configuration = json.loads((single / "run.json").read_text())
    assert configuration["training"]["total_batch_size"] == 8
    summary = json.loads((single / "summary.json").read_text())
    assert summary["updates"] == 12 and summary["eval_perplexity"] > 1
    assert (single / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert Path(summary["checkpoint"]) == single / "model_12"


def test_the_checkpoint_opens_with_transformers_and_generates(single: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(single / "model_12")
    model = AutoModelForCausalLM.from_pretrained(single / "model_12")
    prompt = tokenizer("Return a new", return_tensors="pt")
    text = model.generate(prompt["input_ids"], max_new_tokens=8, do_sample=False)
    assert text.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.decode(text[0]).startswith("Return a new")


def test_one_process_under_torchrun_is_the_same_run(single: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "run", processes=1)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "run") == records(single)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_reach_the_losses_of_one(single: Path, tmp_path: Path, parallel: str) -> None:
    done = train(tmp_path / "run", "--parallel", parallel, processes=2)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(single), rel=1e-5)
    one, two = ([r["eval_loss"] for r in records(f) if "eval_loss" in r] for f in (single, tmp_path / "run"))
    assert two == pytest.approx(one, rel=1e-5)
    assert [r["tokens_seen"] for r in records(tmp_path / "run") if "loss" in r] == [
        r["tokens_seen"] for r in records(single) if "loss" in r
    ]


def test_a_run_ends_early_on_the_schedule_of_the_whole_and_goes_on(single: Path, tmp_path: Path) -> None:
    """Update for update the run that was not interrupted, learning rates too."""
    assert train_here(tmp_path / "run", "--stop_at", "5") == 0
    done = [line for line in records(tmp_path / "run") if "loss" in line]
    whole = [line for line in records(single) if "loss" in line]
    assert done == whole[:5]
    assert (tmp_path / "run" / "model_5").is_dir()
    assert train_here(tmp_path / "run", "--continue_from", "auto") == 0
    assert [line for line in records(tmp_path / "run") if "loss" in line] == whole


def test_a_mistake_is_one_message_and_status_2(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "--model_config", str(inputs() / "missing.json"))
    assert done.returncode == 2
    assert "missing.json" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("ERROR") == 1


def test_a_mistake_is_said_once_by_two_processes(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "--optimizer", "muon", "--continue_from", str(tmp_path), processes=2)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "ERROR" in line and "there is no checkpoint" in line]
    assert len(said) == 1
