"""The command lines of the papers' READMEs, word for word: each is accepted and means what it meant there."""

import shlex
from typing import Any

import pytest

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.training.run_config import RunConfig

# What every README line has around its own flags.
_LLAMA_60M = """
    --model_config configs/llama_60m.json --batch_size 256 --total_batch_size 512 --num_training_steps 10000
    --warmup_steps 1000 --weight_decay 0 --dtype bfloat16 --eval_every 1000
"""
_LLAMA_7B = """
    --model_config configs/llama_7b.json --lr 0.005 --galore_scale 0.25 --rank 1024 --update_proj_gap 500
    --batch_size 16 --total_batch_size 512 --activation_checkpointing --num_training_steps 150000
    --warmup_steps 15000 --weight_decay 0 --grad_clipping 1.0 --dtype bfloat16 --eval_every 1000 --single_gpu
    --optimizer galore_adamw8bit_per_layer
"""
_LDADAM = """
    --model_config configs/llama_350m.json --batch_size 64 --total_batch_size 512 --num_training_steps 55000
    --warmup_steps 5500 --dtype bfloat16 --eval_every 1000 --optimizer ldadamw --lr 1e-3 --beta1 0.908
    --beta2 0.99 --eps 1e-8 --rho 0.908 --wandb_project X --wandb_run_name Y
"""

COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW-SN 60M": (
        f"{_LLAMA_60M} --optimizer adamw_sn --scheduler cosine --lr 5e-2 --grad_clipping 1.0",
        {
            "optimizer": "adamw_sn",
            "lr": 0.05,
            "scheduler": "cosine",
            "grad_clipping": 1.0,
            "beta1": 0.9,
            "eps": 1e-6,
        },
    ),
    "RMSProp-SN 60M": (
        f"{_LLAMA_60M} --optimizer adamw_sn --scheduler cosine --grad_clipping 1.0 --adam_beta1=0 --lr=0.01",
        {"optimizer": "adamw_sn", "lr": 0.01, "beta1": 0.0},
    ),
    "Online Subspace Descent 60M": (
        f"{_LLAMA_60M} --lr 0.01 --galore_scale 0.25 --rank 128 --update_proj_gap 200 "
        "--optimizer galore_adamw --proj_type continuous",
        {
            "galore_scale": 0.25,
            "rank": 128,
            "update_proj_gap": 200,
            "proj_type": "continuous",
            "gradient_accumulation": 2,
        },
    ),
    "GaLore 7B on one GPU": (
        _LLAMA_7B,
        {
            "rank": 1024,
            "update_proj_gap": 500,
            "activation_checkpointing": True,
            "single_gpu": True,
            "per_layer": True,
        }
        | {"gradient_accumulation": 32, "grad_clipping": 1.0, "proj_type": "std", "state_dtype": "int8"},
    ),
    "Online Subspace Descent 7B on one GPU": (
        f"{_LLAMA_7B} --proj_type continuous_adam8bit",
        {"proj_type": "continuous_adam8bit", "per_layer": True},
    ),
    "LDAdam 350M, rank 8 with error feedback": (
        f"{_LDADAM} --rank 8",
        {"rank": 8, "rho": 0.908, "beta1": 0.908, "beta2": 0.99, "eps": 1e-8, "error_feedback": True}
        | {"wandb_project": "X", "wandb_run_name": "Y"},
    ),
    "LDAdam 350M, rank 256 without": (
        f"{_LDADAM} --rank 256 --no_error_feedback",
        {"rank": 256, "error_feedback": False},
    ),
}

EVERY_FLAG = """
    --model_config configs/llama_9m.json --use_hf_model --continue_from runs/x/model_10 --batch_size 8
    --gradient_accumulation 2 --total_batch_size 16 --max_length 128 --optimizer ldadamw --lr 1e-3
    --scheduler cosine_restarts --cycle_length 100 --restart_warmup_steps 10 --min_lr_ratio 0
    --activation_checkpointing --weight_decay 0.1 --warmup_steps 20 --eval_every 50 --num_training_steps 300
    --save_every 100 --save_dir runs/x --tags a,b --dtype float32 --workers 2 --seed 3 --name test
    --grad_clipping 1.0 --beta1 0.9 --beta2 0.99 --eps 1e-8 --rank 8 --rho 0.9 --proj_method svd
    --no_error_feedback --log_details --gpu 0 --single_gpu --device cuda --wandb_mode offline
    --wandb_project P --wandb_run_name R --wandb_job_type J --dataset builtin --tokenizer t5-base --packing
    --eval_tokens 1M --keep_checkpoints 2
"""
ITS_MEANING = {
    "use_hf_model": True,
    "continue_from": "runs/x/model_10",
    "max_length": 128,
    "cycle_length": 100,
    "restart_warmup_steps": 10,
    "min_lr_ratio": 0.0,
    "weight_decay": 0.1,
    "warmup_steps": 20,
    "eval_every": 50,
    "save_every": "100",
    "save_dir": "runs/x",
    "seed": 3,
    "name": "test",
    "proj_method": "svd",
    "error_feedback": False,
    "log_details": True,
    "gpu": 0,
    "wandb_job_type": "J",
    "dataset": "builtin",
    "tokenizer": "t5-base",
    "packing": True,
    "eval_tokens": 1_000_000,
    "wandb_mode": "offline",
    "keep_checkpoints": 2,
}


def parse(line: str, root: Any, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(root)
    return parse_config(shlex.split(line), world_size=1)


def check(config: RunConfig, expected: dict[str, Any]) -> None:
    flat = {name: value for section in config.to_dict().values() for name, value in section.items()}
    assert {name: flat[name] for name in expected} == expected


@pytest.mark.parametrize(("line", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_a_published_command_is_accepted(
    line: str, expected: dict[str, Any], root: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(line, root, monkeypatch)
    check(
        config,
        {"total_batch_size": 512, "dtype": "bfloat16", "eval_every": 1000, "max_length": 256} | expected,
    )


def test_every_published_flag_keeps_its_meaning(root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(parse(EVERY_FLAG, root, monkeypatch), ITS_MEANING)


def test_what_one_more_flag_switches_off_is_no_contradiction(root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published line runs with one flag added, whatever belongs to what that flag switches off."""
    check(parse(f"{_LDADAM} --rank 8 --wandb_mode disabled", root, monkeypatch), {"wandb_mode": "disabled"})
    line = f"{_LLAMA_60M} --optimizer adam --log_details --details_every 5 --no_log_details"
    check(parse(line, root, monkeypatch), {"log_details": False})


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant", "wsd"])
def test_schedulers_are_accepted(scheduler: str, root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{_LLAMA_60M} --optimizer adam --scheduler {scheduler}"
    check(parse(line, root, monkeypatch), {"scheduler": scheduler})


@pytest.mark.parametrize("tokens", ["100M", "1.5B"])
def test_runs_are_measured_in_tokens(tokens: str, root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"--model_config configs/llama_60m.json --optimizer Adam --max_train_tokens {tokens}"
    number = {"100M": 100_000_000, "1.5B": 1_500_000_000}[tokens]
    check(parse(line, root, monkeypatch), {"num_training_steps": number // (16 * 256)})


@pytest.mark.parametrize(
    "optimizer",
    ["adam", "adamw", "sgd", "muon", "adafactor", "adam8bit", "lion", "galore_adafactor", "galore_lion"]
    + ["galore_adamw8bit", "adam_mini", "sgd_boost", "sgd_sai", "ldadam", "adamw_sng"],
)
def test_published_names_are_accepted(optimizer: str, root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(f"{_LLAMA_60M} --lr 0.01 --optimizer {optimizer}", root, monkeypatch)
