"""The memory command: its prediction against bytes of real tensors, and what it prints."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimizers import build_optimizer
from optimizers.engine import precision, registry
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.memory import __main__ as memory
from peft_pretraining.memory import prediction as memory_prediction
from peft_pretraining.memory.ledger import Account, Ledger
from peft_pretraining.memory.prediction import GRADIENTS, STATE, WEIGHTS, mark_state, predict
from peft_pretraining.model.llama import build_model
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.units import GIB
from tests.peft_pretraining.tiny import write_config
from tests.tiny_runs import ROOT

SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 640}
ROWS, LENGTH = 2, 32


def configuration(folder: Path, *words: str, layers: int = 2) -> RunConfig:
    path = write_config(folder, **SMALL, num_hidden_layers=layers)
    shared = ["--model_config", str(path), "--batch_size", str(ROWS), "--max_length", str(LENGTH)]
    return parse_config([*shared, "--dtype", "float32", *words])


def measured(config: RunConfig) -> Account:
    """Two real updates on the CPU, written as anybody's training loop."""
    model = build_model(config.model, "cpu", 0).train()
    optimizer = build_optimizer(config.optimizer.optimizer, model, 1e-3, **config.optimizer.arguments())
    per_layer, parts = getattr(optimizer, "per_layer", False), config.training.gradient_accumulation
    ids, lengths = torch.randint(2, 600, (ROWS, LENGTH)), torch.full((ROWS,), LENGTH)
    ledger = Ledger(torch.device("cpu"))
    ledger.mark(WEIGHTS, model.parameters())
    mark_state(ledger, optimizer)
    with ledger:
        for _ in range(2):
            if per_layer:
                optimizer.begin_update(parts)
            for _ in range(parts):
                model(ids, lengths).backward()
            optimizer.step()
            optimizer.zero_grad()
    return ledger.account()


@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adamw",
        "--optimizer adamw --dtype bfloat16 --activation_checkpointing",
        "--optimizer adamw_sn --beta1 0 --per_layer --activation_checkpointing",
        "--optimizer galore_adamw --rank 8 --gradient_accumulation 2",
        "--optimizer galore_adamw8bit_per_layer --rank 8 --gradient_accumulation 2",
        "--optimizer sgd_boost --per_layer --gradient_accumulation 2",
        "--optimizer ldadamw --rank 8 --state_dtype bfloat16",
        "--optimizer adam8bit",
        "--optimizer muon --use_hf_model",
    ],
)
def test_the_prediction_is_within_five_percent_of_the_bytes_of_real_updates(
    tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding on a CPU has temporaries of its own: the prediction is for accelerators, whose way is measured here."""
    monkeypatch.setattr(precision, "_power_on_cpu", precision._power)
    config = configuration(tmp_path, *words.split())
    predicted, real = predict(config), measured(config)
    assert predicted.peak == pytest.approx(real.peak, rel=0.05)


def test_a_deep_model_follows_from_shallow_ones(tmp_path: Path) -> None:
    config = configuration(tmp_path, "--optimizer", "adamw", "--activation_checkpointing", layers=9)
    extrapolated, whole = predict(config), memory_prediction._predict(config, 9)
    assert (extrapolated.peak, extrapolated.moment) == (whole.peak, whole.moment)
    assert extrapolated.at_peak == whole.at_peak


def test_the_parts_are_those_of_the_shapes(tmp_path: Path) -> None:
    config = configuration(tmp_path, "--optimizer", "adamw_sn")
    model = build_model(config.model, "meta", 0)
    weights = sum(p.numel() * 4 for p in model.parameters())
    account = predict(config)
    assert account.largest[GRADIENTS] == weights
    assert account.largest[WEIGHTS] == pytest.approx(weights, rel=0.01)  # and rotary frequencies
    state = build_optimizer("adamw_sn", model, 1e-3).state_bytes()
    steps = 8 * len(list(model.parameters()))  # the counters live on the CPU
    assert sum(size for kind, size in account.largest.items() if kind.startswith(STATE)) == state - steps
    assert sum(account.at_peak.values()) == account.peak


def test_updates_inside_the_backward_pass_hold_the_largest_gradient_alone(tmp_path: Path) -> None:
    config = configuration(tmp_path, "--optimizer", "adamw_sn", "--per_layer")
    assert predict(config).largest[GRADIENTS] == 640 * 64 * 4


def test_one_run_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, **SMALL)
    assert memory.main(["--model_config", str(path), "--optimizer", "adamw_sn", "--max_length", "32"]) == 0
    text = capsys.readouterr().out
    for word in ("weights", "gradients", "state: moments", "state: second moments", "activations", "peak"):
        assert word in text
    assert "smallest common GPU: 8 GiB" in text


def test_all_methods_are_listed_without_flags_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, **SMALL, num_hidden_layers=1)
    assert (
        memory.main(f"--model_config {path} --optimizer all --rank 4 --scale 0.5 --per_layer --max_length 32".split())
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == registry.available()
    assert not any("refused" in line for line in lines)


def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path) -> None:
    path = write_config(tmp_path, **SMALL, num_hidden_layers=1)
    command = (
        f"{sys.executable} -m peft_pretraining.memory --model_config {path} --optimizer all --max_length 32 | head -1"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "--optimizer is required"),
        ("--model_config nowhere.json --optimizer adamw", "nowhere.json"),
        ("--model_config MODEL --optimizer adamww", "did you mean"),
        ("--model_config MODEL --optimizer adamw --parallel fsdp", "one process"),
        ("--model_config MODEL --optimizer adamw --per_layer --gradient_accumulation 2", "one micro-batch"),
    ],
)
def test_mistakes_are_told_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    path = write_config(tmp_path, **SMALL)
    assert memory.main(words.replace("MODEL", str(path)).split()) == 2
    assert told in capsys.readouterr().err


def test_the_smallest_card_keeps_a_reserve() -> None:
    assert memory.card(int(14.9 * GIB)).startswith("16 GiB")
    assert memory.card(int(15.1 * GIB)).startswith("24 GiB")
    assert memory.card(1000 * GIB) == "none alone"
