"""The product follows whole runs of the released harnesses (benchmarks/replay.py makes the page's figures)."""

import shutil
from pathlib import Path

import pytest
import torch

import torchrun_main
from benchmarks.replay import RECORDED, UPDATES, recorded_runs, replay
from peft_pretraining.cli.parse import parse_config

# Largest relative deviation of the loss that is accepted; the released harness parts from itself, when its weights are
# changed in the last bit, by what its record says.
FLOAT32 = {
    "adamw": 1e-2,
    "adamw_gentle": 2e-6,
    "galore_adamw": 5e-6,
    "osd": 5e-6,
    "adamw_sn": 5e-4,
    "rmsprop_sn": 3e-2,
    "rmsprop_sn_corrected": 1e-5,
    "ldadamw": 4e-4,
    "adam_mini": 5e-6,
    "sgd_sai": 6e-3,
}
EARLY = 60  # updates: the warm-up, and for GaLore the second basis


@pytest.mark.parametrize("name", ["galore_adamw", "adam_mini", "rmsprop_sn_corrected"])
def test_first_updates(name: str) -> None:
    found = replay("float32", name, EARLY)
    assert len(found.losses) == EARLY
    assert found.deviation < FLOAT32[name]
    assert found.lrs == pytest.approx(found.recorded_lrs, rel=1e-6, abs=1e-12)
    assert found.evaluations[50] == pytest.approx(found.recorded_evaluations[50], rel=1e-5)


def test_accumulation_takes_the_mean_of_means() -> None:
    """Two micro-batches of unequal length: with a mean over all tokens the curves part by 1e-3 within ten updates."""
    assert replay("float32_accumulation2", "galore_adamw", 30).deviation < 5e-6
    parted = replay("float32_accumulation2", "galore_adamw", 30, ["--no_micro_batch_means"])
    assert parted.deviation > 1e-4


def test_bfloat16() -> None:
    found = replay("bfloat16", "ldadamw", EARLY)
    assert found.rerun_deviation is not None and found.deviation < 4 * found.rerun_deviation


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT32)
def test_whole_run(name: str) -> None:
    found = replay("float32", name, UPDATES)
    assert found.deviation < FLOAT32[name]
    for update, loss in found.recorded_evaluations.items():
        assert found.evaluations[update] == pytest.approx(loss, rel=max(1e-5, 2 * FLOAT32[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recorded_runs()["bfloat16"] if name != "adamw_snsm"])
def test_whole_run_in_bfloat16(name: str) -> None:
    """Four times the released harness' own deviation: both are noise of roundings."""
    found = replay("bfloat16", name, UPDATES)
    assert found.rerun_deviation is not None and found.deviation < 4 * found.rerun_deviation


BASE = ["--model_config", str(RECORDED / "config.json"), "--single_gpu"]


def test_a_typed_flag_wins_over_the_protocol(tmp_path: Path) -> None:
    words = [*BASE, "--optimizer", "galore_adamw", "--rank", "8", "--protocol", "published"]
    plain = parse_config(words, world_size=1)
    assert plain.training.micro_batch_means and plain.schedule.warmup_from_zero
    assert plain.optimizer.arguments()["weight_rounding"] == "nearest"
    typed = parse_config([*words, "--weight_rounding", "stochastic", "--evaluation", "exact"], world_size=1)
    assert typed.optimizer.arguments()["weight_rounding"] == "stochastic"
    assert typed.training.evaluation == "exact" and typed.training.protocol == "published"


def test_the_tuned_protocol_sets_what_the_method_has() -> None:
    adamw = parse_config([*BASE, "--optimizer", "adamw", "--protocol", "tuned"], world_size=1)
    assert adamw.optimizer.arguments()["weight_decay"] == 0.1 and adamw.optimizer.arguments()["beta2"] == 0.95
    boost = parse_config([*BASE, "--optimizer", "sgd_boost", "--protocol", "tuned"], world_size=1)
    assert boost.optimizer.arguments()["weight_decay"] == 0.1 and boost.schedule.min_lr_ratio == 0.0


def test_stop_at_ends_on_the_schedule_of_the_whole() -> None:
    """Twelve of 200 updates, and their rates are those of 200."""
    found = replay("float32", "adamw_gentle", 12)
    assert len(found.losses) == 12
    assert found.lrs == pytest.approx(found.recorded_lrs, rel=1e-9, abs=1e-15)


def test_weights_to_start_from(tmp_path: Path) -> None:
    """The weights of a folder, its shape and its tokenizer: the first update has the loss of these very weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "weights"
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig.from_json_file(str(RECORDED / "config.json"))).save_pretrained(folder)
    shutil.copytree(RECORDED / "tokenizer", folder, dirs_exist_ok=True)
    words = f"--init_from {folder} --dataset {RECORDED} --dtype float32 --max_length 64 --batch_size 4 --single_gpu"
    more = f"--num_training_steps 2 --workers 0 --device cpu --optimizer adamw --lr 1e-9 --save_dir {tmp_path}/run"
    assert torchrun_main.main([*words.split(), *more.split(), "--wandb_mode", "disabled"]) == 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model_2")
    given = AutoModelForCausalLM.from_pretrained(folder)
    for (name, ours), theirs in zip(saved.named_parameters(), given.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((RECORDED / "config.json").read_text().replace("172", "176"))
    words = ["--init_from", str(tmp_path), "--tokenizer", str(RECORDED / "tokenizer"), "--dataset", str(RECORDED)]
    more = ["--optimizer", "adamw", "--single_gpu", "--save_dir", str(tmp_path / "run"), "--device", "cpu"]
    assert torchrun_main.main([*words, *more]) == 2
