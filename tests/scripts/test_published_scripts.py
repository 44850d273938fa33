"""The scripts of published runs: what they pass is accepted, is what was published, and trains."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.report import published
from peft_pretraining.report.protocol import compare_settings
from tests import tiny_runs

ROOT = tiny_runs.ROOT
SIZES = ("60m", "130m", "350m", "1b")
METHODS = sorted(path.name for path in (ROOT / "scripts/benchmark_c4").iterdir())
C4 = [ROOT / f"scripts/benchmark_c4/{method}/llama_{size}.sh" for method in METHODS for size in SIZES]
ONE_GPU = sorted((ROOT / "scripts/single_gpu").glob("llama_7b_*.sh"))
OTHERS = [ROOT / "scripts/benchmark_c4/ldadam/llama_350m_rank256.sh"]
SCRIPTS = [*C4, *OTHERS, *ONE_GPU]
# The default run trains one of a library's optimizers and one of the engine's.
TRAINED_BY_DEFAULT = ("adam8bit/llama_60m", "adam_mini/llama_130m")


def short(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def words(script: Path, *more: str, **environment: str) -> list[str]:
    """The command that a script would run."""
    done = subprocess.run(
        ["bash", str(script), *more],
        env={**os.environ, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return shlex.split(done.stdout)


def flags(command: list[str]) -> list[str]:
    """What the command gives to torchrun_main.py."""
    return command[command.index("torchrun_main.py") + 1 :]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts name configurations relative to the repository."""
    monkeypatch.chdir(ROOT)


def test_every_family_and_baseline_has_every_size() -> None:
    families = {"adamw_sn", "rmsprop_sn", "adamw_sng", "online_subspace_descent", "adam_mini", "sgd_boost", "ldadam"}
    later = {"apollo", "apollo_mini", "fira", "muon", "soap", "scale", "adamw_snsm", "dion2"}
    assert families | later | {"adamw", "galore", "adam8bit"} == set(METHODS)
    assert [path for path in C4 if not path.exists()] == []
    one_gpu = {path.stem.removeprefix("llama_7b_") for path in ONE_GPU}
    assert one_gpu == families - {"adamw_sng"} | {"adamw", "galore", "galore_checkpointing", "adam8bit"}


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("script", SCRIPTS, ids=short)
def test_a_script_is_accepted_and_hands_flags_on(script: Path, processes: int) -> None:
    command = words(script, "--seed", "7", "--name", "two words", NPROC=str(processes))
    config = parse_config(flags(command), world_size=1 if "--single_gpu" in command else processes)
    assert config.training.seed == 7
    assert config.logging.name == "two words"
    assert config.model.model_config == f"configs/{'_'.join(script.stem.split('_')[:2])}.json"
    assert Path(config.model.model_config).is_file()


PUBLISHED = {
    "adamw_sn/llama_130m": {"lr": 0.05, "grad_clipping": 1.0, "beta1": 0.9, "eps": 1e-6, "num_training_steps": 20_000},
    "rmsprop_sn/llama_60m": {"lr": 0.01, "beta1": 0.0, "num_training_steps": 10_000, "weight_decay": 0.0},
    "galore/llama_1b": {"lr": 0.01, "rank": 512, "galore_scale": 0.25, "num_training_steps": 100_000},
    "galore/llama_60m": {"rank": 128, "update_proj_gap": 200, "proj_type": "std", "grad_clipping": 0.0},
    "online_subspace_descent/llama_60m": {"lr": 0.01, "rank": 128, "proj_type": "continuous"},
    "online_subspace_descent/llama_1b": {"rank": 512, "grad_clipping": 1.0, "num_training_steps": 10_000},
    "ldadam/llama_350m_rank256": {"rank": 256, "error_feedback": False, "num_training_steps": 55_000},
    "ldadam/llama_350m": {"lr": 1e-3, "beta1": 0.908, "beta2": 0.99, "rank": 8, "num_training_steps": 55_000},
    "adam_mini/llama_1b": {"lr": 2e-4, "beta2": 0.95, "weight_decay": 0.1, "max_length": 512, "scheduler": "linear"},
    "apollo/llama_60m": {"lr": 0.01, "rank": 128, "scale": 1.0, "update_proj_gap": 200, "proj": "random"},
    "apollo_mini/llama_130m": {"lr": 0.01, "scale": 192.0, "scale_front": True, "weight_decay": 0.0},
    "apollo_mini/llama_350m": {"lr": 0.01, "scale": 128.0, "scale_front": False},
    "fira/llama_1b": {"lr": 0.01, "rank": 512, "alpha": 0.0625, "grad_clipping": 0.0},
    "muon/llama_1b": {"lr": 1e-3, "weight_decay": 0.1, "adamw_beta2": 0.95, "adam_lr_ratio": 1.0, "grad_clipping": 1.0},
    "soap/llama_130m": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.99, "precondition_frequency": 10},
    "scale/llama_60m": {"lr": 1e-3, "momentum": 0.9, "adam_lr": None, "num_training_steps": 11_000},
    "scale/llama_1b": {"lr": 2e-4, "adam_lr": 1e-3, "num_training_steps": 100_000},
    "adamw_snsm/llama_60m": {"lr": 0.05, "rank": 128, "update_proj_gap": 100, "grad_clipping": 1.0, "subset_size": 0},
    "single_gpu/llama_7b_galore_checkpointing": {
        "rank": 1024,
        "update_proj_gap": 500,
        "lr": 0.005,
        "batch_size": 16,
        "per_layer": True,
        "activation_checkpointing": True,
        "num_training_steps": 150_000,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_published(name: str) -> None:
    (script,) = [path for path in SCRIPTS if short(path) == name]
    sections = parse_config(flags(words(script, NPROC="1")), world_size=1).to_dict()
    found = {flag: value for values in sections.values() for flag, value in values.items()}
    assert {flag: found[flag] for flag in PUBLISHED[name]} == PUBLISHED[name]
    assert found["total_batch_size"] == (256 if "adam_mini" in name else 512)


@pytest.mark.parametrize("name", ["galore/llama_60m", "galore/llama_130m", "galore/llama_350m", "galore/llama_1b"])
def test_a_script_does_what_its_figure_came_from(name: str) -> None:
    """A report sets the figure of GaLore's table beside a run of the script."""
    (script,) = [path for path in SCRIPTS if short(path) == name]
    sections = parse_config(flags(words(script, "--evaluation", "published", NPROC="1")), world_size=1).to_dict()
    own = {flag: value for values in sections.values() for flag, value in values.items()} | {"tokenizer": "t5-base"}
    size = name.rpartition("_")[2].upper()
    (figure,) = [
        r
        for r in published.results()
        if (r.method, r.model, r.metric) == ("GaLore", size, "validation perplexity") and r.reported_by == "the paper"
    ]
    assert compare_settings(own, figure).sentences() == []


def test_a_flag_of_the_user_wins() -> None:
    config = parse_config(flags(words(C4[0], "--lr", "0.125", "--total_batch_size", "256", NPROC="1")), world_size=1)
    assert (config.optimizer.lr, config.training.total_batch_size) == (0.125, 256)


@pytest.mark.parametrize(
    ("typed", "rows", "accumulation"),
    [
        ("", 64, 1),
        ("--total_batch_size 1024", 128, 1),
        ("--total-batch-size=96", 12, 1),
        ("--batch_size 16", 16, 4),
        ("--batch_size=16 --total_batch_size 2048", 16, 16),
        ("--gradient_accumulation 4", 16, 4),
        ("--max_length 1024 --total_batch_size 4096", 64, 8),
    ],
)
def test_rows_are_shared_by_eight_processes(typed: str, rows: int, accumulation: int) -> None:
    script = ROOT / "scripts/benchmark_c4/adamw/llama_60m.sh"
    training = parse_config(flags(words(script, *typed.split(), NPROC="8")), world_size=8).training
    assert (training.batch_size, training.gradient_accumulation) == (rows, accumulation)


def test_weights_are_rounded_as_in_the_published_runs() -> None:
    """To nearest wherever there is a choice, unless the user says otherwise."""
    for script in SCRIPTS:
        method = parse_config(flags(words(script, NPROC="1")), world_size=1).optimizer
        assert method.arguments()["weight_rounding"] == "nearest", script
    config = parse_config(flags(words(C4[4], "--weight_rounding", "stochastic", NPROC="1")), world_size=1)
    assert config.optimizer.arguments()["weight_rounding"] == "stochastic"


def test_a_short_run_keeps_its_share_of_warm_up() -> None:
    for size in SIZES:
        script = ROOT / f"scripts/benchmark_c4/adam_mini/llama_{size}.sh"
        for updates in (500, 50):
            command = words(script, "--num_training_steps", str(updates), NPROC="1")
            assert parse_config(flags(command), world_size=1).schedule.warmup_steps == updates // 100


def test_processes_come_from_the_environment() -> None:
    command = words(C4[0], NPROC="4")
    assert command[command.index("--nproc_per_node") + 1] == "4"
    assert "--single_gpu" in words(ONE_GPU[0])
    done = subprocess.run(
        ["bash", str(C4[0])], env={**os.environ, "DRY_RUN": "1", "NPROC": "all"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "NPROC=all" in done.stderr


def tiny(folder: Path, dataset: str) -> list[str]:
    """Flags that shrink a published run to two updates."""
    made = tiny_runs.inputs()
    text = (
        f"--model_config {made}/model.json --dataset {dataset} --tokenizer {made}/tokenizer "
        "--workers 0 --eval_tokens 500 --max_length 32 --batch_size 4 --total_batch_size 8 --num_training_steps 2 "
        f"--warmup_steps 1 --device cpu --wandb_mode disabled --dtype fp32 --save_dir {folder}"
    )
    return text.split()


def train(script: Path, folder: Path, dataset: str) -> None:
    from torchrun_main import main

    own = flags(words(script, *tiny(folder, dataset), NPROC="1"))
    if "--rank" in own:
        own += ["--rank", "8"]
    if "--per_layer" in own:
        own += ["--total_batch_size", "4"]
    assert main([*own, "--single_gpu"]) == 0
    assert len(tiny_runs.losses(folder)) == 2


@pytest.mark.parametrize("name", TRAINED_BY_DEFAULT)
def test_two_updates(name: str, tmp_path: Path) -> None:
    (script,) = [path for path in SCRIPTS if short(path) == name]
    train(script, tmp_path / "run", str(tiny_runs.inputs() / "text"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=short)
def test_two_updates_of_every_script_on_builtin(script: Path, tmp_path: Path) -> None:
    train(script, tmp_path / "run", "builtin")


def table(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "scripts/reproduce_table.sh"), *more],
        env={**tiny_runs.environment(), "FOLDER": str(folder), "PYTHON": sys.executable, "NPROC": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_a_column_of_the_table_in_a_dry_run(tmp_path: Path) -> None:
    done = table(tmp_path / "t", "60m", "--dataset", "builtin", DRY_RUN="1")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == len(METHODS)
    for line, method in zip(lines, METHODS, strict=True):
        config = parse_config(flags(line), world_size=1)
        assert config.training.evaluation == "published"
        assert config.checkpoint.save_dir == str(tmp_path / "t" / method)
    assert not (tmp_path / "t").exists()


def test_one_protocol_holds_for_the_table(tmp_path: Path) -> None:
    """Also for methods whose papers had another; each seed is a run of its own, and Slurm may have them all."""
    done = table(tmp_path / "t", "1b", DRY_RUN="1", SEEDS="0 7")
    configs = [parse_config(flags(shlex.split(line)), world_size=1) for line in done.stdout.splitlines()]
    assert len(configs) == 2 * len(METHODS) == len({config.checkpoint.save_dir for config in configs})
    assert {config.training.seed for config in configs} == {0, 7}
    for config in configs:
        training, schedule = config.training, config.schedule
        assert (training.total_batch_size, config.data.max_length, training.num_training_steps) == (512, 256, 100_000)
        assert (schedule.scheduler, schedule.warmup_steps) == ("cosine", 10_000)
    own = table(tmp_path / "t", "1b", DRY_RUN="1", OWN_PROTOCOL="1", METHODS="adam_mini").stdout
    assert parse_config(flags(shlex.split(own)), world_size=1).data.max_length == 512
    slurm = table(tmp_path / "t", "60m", DRY_RUN="1", SLURM="1", METHODS="adamw").stdout.split()
    assert slurm[:4] == ["sbatch", "--job-name=60m-adamw-0", "scripts/slurm/pretrain.sh", "--"]


def test_processes_that_cannot_share_an_update_are_refused_with_those_that_can() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/benchmark_c4/adamw/llama_60m.sh")],
        env={**os.environ, "DRY_RUN": "1", "NPROC": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "NPROC=3" in done.stderr and "take 1, 2, 4, 8" in done.stderr


def test_the_table_names_what_it_wants() -> None:
    assert "60m" in table(Path("unused"), "61m").stderr
    done = table(Path("unused"), "60m", METHODS="adamw adamx", DRY_RUN="1")
    assert done.returncode == 2 and "adamx" in done.stderr


def test_what_failed_is_named_where_no_report_can_be_made(tmp_path: Path) -> None:
    done = table(tmp_path / "t", "60m", METHODS="adamw lion", PYTHON="/bin/false")
    assert done.returncode == 2 and "lion" in done.stderr, "no such folder of scripts"
    done = table(tmp_path / "t", "60m", METHODS="adamw rmsprop_sn", PYTHON="/bin/false")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "failed: adamw rmsprop_sn"
    assert "1 of 2 runs done" in done.stderr


def test_the_table_of_short_runs(tmp_path: Path) -> None:
    """--num_training_steps fits every script: no warm-up is longer than the run."""
    for size in SIZES:
        done = table(tmp_path / "t", size, "--num_training_steps", "50", DRY_RUN="1")
        for line in done.stdout.splitlines():
            parse_config(flags(shlex.split(line)), world_size=1)


@pytest.mark.slow
def test_a_column_of_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shrunk = tiny(folder, str(tiny_runs.inputs() / "text"))[:-2]
    done = table(folder, "60m", *shrunk, METHODS="adamw rmsprop_sn")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| rmsprop_sn +\|.*\d", done.stdout)
    assert (folder / "report.html").stat().st_size > 20_000


def test_the_demo_and_the_gpu_benchmarks_can_be_looked_at() -> None:
    command = words(ROOT / "scripts/demo.sh", "--save-dir", "runs/elsewhere")
    assert parse_config(flags(command), world_size=1).checkpoint.save_dir == "runs/elsewhere"
    command = words(ROOT / "scripts/gpu_benchmarks.sh", "--minutes", "4", PYTHON="an interpreter")
    assert command == ["an interpreter", "-m", "benchmarks.gpu", "--minutes", "4"]
