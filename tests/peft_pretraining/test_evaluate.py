"""Measuring a checkpoint on other text gives what training reported, and says what it needs."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from peft_pretraining.evaluate import main
from tests.tiny_runs import inputs, records, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert train_here(folder, "--tensorboard", "true", "--eval_every", "4") == 0
    return folder


def test_the_held_out_documents_have_the_loss_that_training_reported(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), "--dataset", str(inputs() / "text"), "--eval_tokens", "1000", "--device", "cpu"]
    assert main([*words, "--documents", "held_out"]) == 0
    found = json.loads(capsys.readouterr().out)
    (last,) = [line for line in records(run) if line.get("eval_loss") and line["update_step"] == 12]
    assert found["checkpoint"] == str(run / "model_12")
    assert (found["loss"], found["tokens"]) == (pytest.approx(last["eval_loss"], rel=1e-5), last["eval_tokens"])
    assert found["bits_per_byte"] == pytest.approx(last["eval_bits_per_byte"], rel=1e-5)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != found["loss"], "all documents are others"


def test_a_folder_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--dataset", "builtin"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_checkpoint_says_what_it_is(run: Path) -> None:
    text = (run / "model_12/README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    for fact in (
        "after 12 of 12 updates",
        "`adamw`, learning rate 0.01, cosine",
        "8 rows of 32 tokens",
        "after update 8",
    ):
        assert fact in text, fact
    weights = load_file(run / "model_12/model.safetensors")
    assert f"{sum(w.numel() for w in weights.values()) / 1e6:.3g}M parameters" in text


def test_tensorboard_holds_the_lines_of_the_metrics(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for kind in ("loss", "eval_loss", "lr"):
        logged = {line["update_step"]: line[kind] for line in records(run) if kind in line}
        written = {event.step: event.value for event in events.Scalars(kind)}
        assert written == pytest.approx(logged, rel=1e-6), kind


def test_tensorboard_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from peft_pretraining.tracking import tensorboard_run

    monkeypatch.setattr(tensorboard_run, "find_spec", lambda name: None)
    assert train_here(tmp_path / "run", "--tensorboard", "true") == 2
    assert "pip install tensorboard" in capfd.readouterr().err


def test_keys_of_others_are_not_saved(tmp_path: Path) -> None:
    """A quantization_config in the model's file would make readers quantise a model that is not."""
    foreign = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "auto_map": {"x": "y"}}
    shape = json.loads((inputs() / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(shape | foreign | {"rope_theta": 20000.0}))
    assert train_here(tmp_path / "run", "--model_config", str(tmp_path / "model.json"), updates=2) == 0
    saved = json.loads((tmp_path / "run/model_2/config.json").read_text())
    assert not foreign.keys() & saved.keys()
    assert saved["rope_parameters"]["rope_theta"] == 20000.0 and saved["hidden_size"] == shape["hidden_size"]
