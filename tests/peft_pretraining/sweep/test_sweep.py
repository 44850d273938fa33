"""Sweeps: what a file means, how a search goes, and that real processes are run, resumed, stopped and reported."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.sweep import execution
from peft_pretraining.sweep.__main__ import main
from peft_pretraining.sweep.execution import Execution, jobs_of
from peft_pretraining.sweep.file import read_sweep
from peft_pretraining.sweep.outcome import outcome_of, updates_done
from peft_pretraining.sweep.plan import Limits
from peft_pretraining.sweep.search import Search, at_edge, best_value, next_values
from tests import tiny_runs

MODEL = str(tiny_runs.ROOT / "configs/llama_9m.json")


def write(folder: Path, **content: Any) -> Path:
    """A sweep file over a real model's configuration."""
    path = folder / "sweep.json"
    flags = {"model_config": MODEL, "dataset": "builtin", "num_training_steps": 4, **content.pop("flags", {})}
    path.write_text(json.dumps({"folder": str(folder / "runs"), "flags": flags, **content}))
    return path


def searched(losses: Any, start: list[float], budget: int) -> dict[float, float]:
    """Plays a search to its end against a function of the value."""
    tried: dict[float, float] = {}
    while values := next_values(Search(budget=budget), start, tried):
        tried |= {value: losses(value) for value in values}
    return tried


def bowl(best: float) -> Any:
    return lambda value: math.log(value / best) ** 2


@pytest.mark.parametrize("best", [1e-6, 1e-4, 3e-3, 0.05, 1.0])
def test_a_search_finds_a_best_that_lies_outside_its_first_values(best: float) -> None:
    tried = searched(bowl(best), [1e-3, 4e-3], budget=9)
    assert len(tried) == 9
    assert best / 2 < best_value(tried) < best * 2
    assert not at_edge(tried)


def test_every_search_costs_the_same() -> None:
    sizes = {len(searched(bowl(best), [1e-3, 4e-3, 1.6e-2], budget=6)) for best in (1e-5, 2e-3, 4e-3, 0.5)}
    assert sizes == {6}


def test_a_search_that_diverges_goes_down() -> None:
    def losses(value: float) -> float:
        return math.inf if value > 1e-3 else bowl(5e-4)(value)

    tried = searched(losses, [0.1, 0.2], budget=12)
    assert best_value(tried) < 1e-3


def test_a_budget_that_is_too_small_leaves_the_best_at_the_edge() -> None:
    assert at_edge(searched(bowl(1.0), [1e-3, 4e-3], budget=3))
    assert at_edge({1e-3: 1.0})


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    methods = {"adamw": {"lr": [1e-3, 1e-2]}, "rmsprop": {"optimizer": "adamw_sn", "beta1": 0, "lr": [0.1]}}
    sweep = read_sweep(write(tmp_path, methods=methods, grid={"max_length": [64, 128]}, seeds=[0, 1]))
    runs = [run for cell in sweep.cells for run in cell.next_runs({})]
    assert len(runs) == len(sweep.cells) == (2 + 1) * 2 * 2
    assert len({run.folder for run in runs}) == len(runs)
    run = next(run for run in runs if run.method == "rmsprop")
    assert run.name == "rmsprop-max_length=64-lr=0.1-seed=0"
    config = parse_config(run.arguments())
    assert (config.optimizer.optimizer, config.data.max_length) == ("adamw_sn", 64)
    assert config.optimizer.arguments()["beta1"] == 0.0


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"flags: {{model_config: {MODEL}}}\nmethods: {{adamw: {{lr: [1e-3, 3e-3]}}}}\nsearch: {{budget: 3}}"
    )
    (cell,) = read_sweep(path).cells
    assert cell.start == (1e-3, 3e-3)
    assert [run.name for run in cell.next_runs({})] == ["adamw-lr=0.001-seed=0", "adamw-lr=0.003-seed=0"]


def test_toml_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(f'[flags]\nmodel_config = "{MODEL}"\n[methods.adamw]\nlr = [1e-3]\n')
    assert len(read_sweep(path).cells) == 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt key": ({"method": {}}, "methods"),
    "no methods": ({"methods": {}}, "at least one"),
    "list in flags": ({"flags": {"lr": [1, 2]}}, "grid"),
    "own flag": ({"flags": {"save_dir": "x"}}, "save_dir"),
    "seeds": ({"seeds": [0.5]}, "seeds"),
    "search key": ({"search": {"budgets": 3}}, "budget"),
    "too many start values": ({"methods": {"adamw": {"lr": [1, 2, 3]}}, "search": {"budget": 2}}, "budget"),
    "no start values": ({"search": {"budget": 2}}, "start from"),
    "limits": ({"limits": {"jobs": 0}}, "jobs"),
    "gpus": ({"limits": {"gpus": "all"}}, "gpus"),
    "nested": ({"methods": {"adamw": {"lr": [{"x": 1}]}}}, "lr"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_named(name: str, tmp_path: Path) -> None:
    content, word = MISTAKES[name]
    path = write(tmp_path, **{"methods": {"adamw": {}}, **content})
    with pytest.raises(UsageError, match=word) as caught:
        read_sweep(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: [1"), ("a.json", "{"), ("a.toml", "a"), ("a.txt", "")])
def test_a_damaged_file_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        read_sweep(tmp_path / name)


def test_a_wrong_flag_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, methods={"adamw": {"lr": [1e-3]}, "adamw_sn": {"rho": 0.5}})
    assert main([str(path)]) == 2
    assert "adamw_sn" in (message := capsys.readouterr().err) and "rho" in message
    assert not (tmp_path / "runs").exists()


def test_more_than_the_machine_has_is_refused() -> None:
    cores = execution.usable_cores()
    assert jobs_of(Limits()) == cores
    assert jobs_of(Limits(threads=cores)) == 1
    with pytest.raises(UsageError, match="cores"):
        jobs_of(Limits(jobs=2, threads=cores))


def test_gpus_are_taken_in_turn() -> None:
    limits = Limits(processes=2, gpus=(0, 1, 2, 3))
    given = [execution.environment(limits, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert given == ["0,1", "2,3", "0,1"]


def test_a_reader_of_the_commands_may_leave(tmp_path: Path) -> None:
    path = write(tmp_path, methods={"adamw": {"lr": [0.01]}}, seeds=list(range(40)))
    words = [sys.executable, "-m", "peft_pretraining.sweep", str(path), "--dry_run", "--jobs", "1"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=tiny_runs.environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


STAND_IN = """
import json, math, signal, sys, time
from pathlib import Path

flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, lr, updates = Path(flags["save_dir"]), float(flags["lr"]), int(flags["num_training_steps"])
(folder / "run.json").write_text("{}")
with open(folder / "starts", "a") as starts:
    starts.write("x")
if lr == 13:
    print("ERROR: unlucky", flush=True)
    sys.exit(1)
if lr == 60:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").touch()
    time.sleep(30)
skipped = lr > 1
loss, count = (None, 10) if skipped else (5.0, updates)
lines = [{"update_step": n + 1, "loss": loss, "skipped": skipped} for n in range(count)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
if skipped:
    sys.exit(1)
loss = 4 + math.log10(lr / 0.01) ** 2 + 0.01 * int(flags["seed"])
(folder / "summary.json").write_text(json.dumps({"updates": updates, "eval_loss": loss}))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that leaves a run's files at once: diverges above lr 1, fails at 13, waits at 60."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(execution, "MAIN", path)
    monkeypatch.setattr(execution, "_POLL_SECONDS", 0.02)


def starts(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in sorted(folder.glob("*/starts"))}


@pytest.mark.usefixtures("stand_in")
def test_a_search_runs_its_budget_and_then_the_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"adamw": {"lr": [0.1, 0.4]}, "adamw_sn": {"lr": [2, 8]}}
    path = write(tmp_path, methods=methods, seeds=[0, 1, 2], search={"budget": 5})
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    first = starts(tmp_path / "runs")
    for method in methods:
        assert len([name for name in first if name.startswith(f"{method}-") and name.endswith("seed=0")]) == 5
        assert f"{method}: best lr" in said
    assert len(first) == 2 * (5 + 2)
    assert main([str(path)]) == 0
    assert starts(tmp_path / "runs") == first, "nothing is run twice, also not what diverged"
    assert json.loads((tmp_path / "runs" / next(iter(first)) / "sweep.json").read_text()) == {"method": "adamw"}


@pytest.mark.usefixtures("stand_in")
def test_a_failed_run_is_reported_with_its_log_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, methods={"adamw": {"lr": [0.01, 13]}})
    for attempt in (1, 2):
        assert main([str(path)]) == 1
        said = capsys.readouterr().err
        assert "ERROR: unlucky" in said and str(tmp_path / "runs/adamw-lr=13-seed=0/log.txt") in said
        assert starts(tmp_path / "runs") == {"adamw-lr=0.01-seed=0": 1, "adamw-lr=13-seed=0": attempt}


@pytest.mark.usefixtures("stand_in")
def test_a_stopped_sweep_stops_its_runs(tmp_path: Path) -> None:
    path = write(tmp_path, methods={"adamw": {"lr": [60]}})

    def stop_when_ready() -> None:
        while not list((tmp_path / "runs").glob("*/ready")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    started = time.monotonic()
    assert main([str(path), "--jobs", "1"]) == 75
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("stand_in")
def test_a_task_is_one_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, methods={"adamw": {"lr": [0.01, 0.02]}}, seeds=[0, 1])
    assert main([str(path), "--task", "3"]) == 0
    assert list(starts(tmp_path / "runs")) == ["adamw-lr=0.02-seed=1"]
    assert main([str(path), "--task", "4"]) == 2
    assert "0 to 3" in capsys.readouterr().err


def test_the_array_script_has_a_task_for_every_cell(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        methods={"adamw": {"lr": [0.01, 0.02]}, "lion": {"lr": [0.01, 0.02]}},
        search={"budget": 3},
        limits={"jobs": 2, "threads": 3},
        slurm={"gres": "gpu:1", "time": "1:00:00", "mem_per_cpu": "2G", "cpus_per_task": 3},
    )
    script = tmp_path / "array.sh"
    assert main([str(path), "--slurm", str(script), "--task", "0"]) == 2
    assert main([str(path), "--slurm", str(tmp_path / "nowhere" / "array.sh")]) == 2
    assert main([str(path), "--slurm", str(script), "--threads", "3"]) == 0
    assert "--cpus-per-task=3" in script.read_text() and "--threads 3" in script.read_text()
    assert main([str(path), "--slurm", str(script)]) == 0
    text = script.read_text()
    for option in (
        "--array=0-1%2",
        "--cpus-per-task=3",
        "--gres=gpu:1",
        "--time=1:00:00",
        "--requeue\n",
        "--mem-per-cpu=2G",
    ):
        assert f"#SBATCH {option}" in text
    assert text.count("--cpus-per-task") == 1, "underscores name the same option"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    words = ["--model_config", MODEL, "--optimizer", "adamw", "--lr", "0.5"]
    (tmp_path / "run.json").write_text(json.dumps(parse_config(words).to_dict()))
    assert outcome_of(tmp_path, parse_config([*words, "--save_dir", "x", "--workers", "0"])).loss is None
    with pytest.raises(UsageError, match="--lr 0.5.*0.25"):
        outcome_of(tmp_path, parse_config([*words[:-1], "0.25"]))


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path: Path) -> None:
    assert updates_done(tmp_path) == 0
    lines = [json.dumps({"update_step": n, "loss": 1.0, "padding": "x" * 100}) + "\n" for n in range(1, 1000)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"update_step": 1000, "lo')
    assert updates_done(tmp_path) == 999


def test_real_runs(tmp_path: Path) -> None:
    """A sweep of one run, after which nothing is left to do."""
    made = tiny_runs.inputs()
    flags = {
        "model_config": f"{made}/model.json",
        "dataset": f"{made}/text",
        "tokenizer": f"{made}/tokenizer",
        "dtype": "fp32",
        "workers": 0,
        "eval_tokens": 200,
        "max_length": 32,
        "batch_size": 4,
        "device": "cpu",
        "wandb_mode": "disabled",
    }
    path = write(tmp_path, flags=flags, methods={"adamw": {"lr": ["1e-3"]}})
    assert main([str(path), "--jobs", "1"]) == 0
    sweep = read_sweep(path)
    assert Execution(sweep.cells, sweep.limits).prepare() == (1, 0)
    assert len(tiny_runs.losses(tmp_path / "runs/adamw-lr=0.001-seed=0")) == 4
