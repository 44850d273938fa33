"""Checkpoints: whole or not there, refused by name when damaged, and never somebody else's."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.checkpoint.find import choose_folder, find_checkpoint
from peft_pretraining.checkpoint.optimizer_state import describe, group_values, parameter_names, state_tensors
from peft_pretraining.checkpoint.progress import Progress
from peft_pretraining.checkpoint.store import read_trainer
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import STATE_FOLDER, TRAINER, RunFolder, locked
from peft_pretraining.run_folder.manifest import DamagedCheckpoint, verify
from tests.tiny_runs import MODEL, environment, flags, inputs, records, train_here


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train_here(folder) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def test_manifest_covers_every_file_and_no_file_is_a_pickle(finished: Path) -> None:
    newest = finished / "model_12"
    verify(newest)
    listed = set(json.loads((newest / "manifest.json").read_text())["files"])
    present = {str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file()} - {"manifest.json"}
    assert listed == present
    assert {Path(name).suffix for name in listed} <= {".json", ".safetensors", ".jinja", ".md"}


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", f"{STATE_FOLDER}/{TRAINER}", "config.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(
    finished: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    copy = tmp_path / "run"
    for checkpoint in ("model_8", "model_12"):
        shutil.copytree(finished / checkpoint, copy / checkpoint)
    damage(copy / "model_12" / name)
    # A changed manifest may speak of any file.
    with pytest.raises(DamagedCheckpoint, match="" if name == "manifest.json" else Path(name).name):
        verify(copy / "model_12")
    auto = CheckpointConfig(save_dir=str(copy), continue_from="auto")
    assert find_checkpoint(auto, RunFolder(copy)) == copy / "model_8"
    named = CheckpointConfig(continue_from=str(copy / "model_12"))
    with pytest.raises(UsageError, match="model_12: refused"):
        find_checkpoint(named, RunFolder(copy))


def test_a_stray_weights_file_is_refused(run: Path) -> None:
    shutil.copy(run / "model_12" / "model.safetensors", run / "model_12" / STATE_FOLDER / "more.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"more\.safetensors"):
        verify(run / "model_12")


def test_a_run_whose_newest_checkpoint_is_damaged_redoes_what_is_missing(finished: Path, run: Path) -> None:
    flip_a_bit(run / "model_12" / "model.safetensors")
    assert train_here(run, "--continue_from", "auto") == 0
    assert records(run) == records(finished)
    verify(run / "model_12")
    assert (run / "model_12.set_aside").is_dir()


def test_when_nothing_valid_is_left_the_run_does_not_start_over_in_silence(run: Path) -> None:
    for checkpoint in run.glob("model_*"):
        cut(checkpoint / "model.safetensors")
    with pytest.raises(UsageError, match="no valid checkpoint"):
        find_checkpoint(CheckpointConfig(save_dir=str(run), continue_from="auto"), RunFolder(run))


def test_half_written_checkpoints_are_not_seen_and_are_removed(run: Path) -> None:
    (run / "model_12").rename(run / ".model_16.partial")
    assert [update for update, _ in RunFolder(run).checkpoints()] == [8, 4]
    with locked(run, fresh=False):
        assert not (run / ".model_16.partial").exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", "--save_every", "2", "--keep_checkpoints", "2") == 0
    assert [update for update, _ in RunFolder(tmp_path / "run").checkpoints()] == [12, 10]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--optimizer", "lion"], "--optimizer"),
        (["--dtype", "bf16"], "--dtype"),
        (["--max_length", "32", "--packing", "true"], "packing"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_a_mistake(
    run: Path, more: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(run, "--continue_from", "auto", "--num_training_steps", "16", *more) == 2
    assert said in capfd.readouterr().err


def test_a_checkpoint_of_another_model_names_the_difference(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wide.json").write_text(json.dumps({**MODEL, "intermediate_size": 96}))
    assert train_here(run, "--continue_from", "auto", "--model_config", str(tmp_path / "wide.json")) == 2
    said = capfd.readouterr().err
    assert "another model" in said and "mlp" in said and "Traceback" not in said


def test_another_format_version_is_stated(run: Path) -> None:
    path = run / "model_12" / STATE_FOLDER / TRAINER
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 0}))
    with pytest.raises(UsageError, match="format version is 0"):
        read_trainer(run / "model_12")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON | st.dictionaries(st.sampled_from(["files", "format_version", "progress", "optimizer"]), JSON))
def test_hostile_metadata_is_an_error_message(tmp_path: Path, content: object) -> None:
    folder = tmp_path / "model_1" / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINER).write_text(json.dumps(content))
    with pytest.raises(UsageError):
        read_trainer(folder.parent)
    (folder.parent / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpoint):
        verify(folder.parent)
    if isinstance(content, dict):
        with pytest.raises(UsageError):
            Progress.from_json(content)


def test_metrics_of_the_run_that_is_continued_elsewhere_come_along(finished: Path, tmp_path: Path) -> None:
    assert train_here(tmp_path / "other", "--continue_from", str(finished / "model_8")) == 0
    assert records(tmp_path / "other") == records(finished)
    assert (finished / "model_12").is_dir()


def test_a_folder_with_a_run_is_not_written_over(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_here(run) == 2
    assert "--continue_from auto" in capfd.readouterr().err


def test_two_runs_in_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from peft_pretraining.run_folder.layout import locked\n"
    script += "with locked(Path(sys.argv[1]), fresh=True): print('locked', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as first:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with pytest.raises(UsageError, match=f"another run writes here .process {first.pid}"), locked(tmp_path, True):
            pass
        first.kill()
    with locked(tmp_path, fresh=True):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), locked(tmp_path / "file" / "run", fresh=True):
        pass


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from torchrun_main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("largest", [20_000, 190_000])
@pytest.mark.parametrize("how", [(), ("--async_save", "--save_every", "16")])
def test_a_full_disk_keeps_the_checkpoints_before_it(run: Path, largest: int, how: tuple[str, ...]) -> None:
    """A limit on file sizes stands for the full disk: 20 kB stop the weights, 190 kB the larger optimizer state."""
    more = ["--single_gpu", *flags(run, *how, "--continue_from", "auto", "--num_training_steps", "18")]
    words = [sys.executable, "-c", FULL_DISK, str(largest), *more]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr and "model_12" in done.stderr
    assert "Traceback" not in done.stderr
    verify(run / "model_12")
    assert not list(run.glob(".model_*")) and not (run / "model_16").exists()


def test_the_run_folder_that_flags_ask_for() -> None:
    assert choose_folder(CheckpointConfig(save_dir="a"), "n") == Path("a")
    assert choose_folder(CheckpointConfig(), "n") == Path("runs/n")
    assert choose_folder(CheckpointConfig(continue_from="b/model_7"), None) == Path("b")
    assert choose_folder(CheckpointConfig(continue_from="b"), None) == Path("b")


def test_a_checkpoint_is_known_under_any_name(run: Path, tmp_path: Path) -> None:
    """Nothing of a new run is written into it, or it would no longer be whole."""
    shutil.move(run / "model_12", run / "model_12.set_aside")
    assert choose_folder(CheckpointConfig(continue_from=str(run / "model_12.set_aside")), None) == run
    (tmp_path / "model_x").mkdir()
    assert choose_folder(CheckpointConfig(continue_from=str(tmp_path / "model_x")), None) == tmp_path / "model_x"


def test_state_is_keyed_by_name_and_keeps_its_dtypes() -> None:
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    constructed = group_values(optimizer)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    names = parameter_names(model, optimizer)
    tensors = state_tensors(optimizer, names)
    assert set(tensors) == {f"{p}/{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")}
    assert tensors["weight/exp_avg"].dtype is torch.bfloat16 and tensors["bias/step"].dtype is torch.float32
    described = describe(optimizer, names, constructed)
    assert described["groups"] == constructed and described["parameters"] == [["weight", "bias"]]
    json.dumps(described)


def test_impossible_flags() -> None:
    with pytest.raises(UsageError):
        CheckpointConfig(keep_checkpoints=0)
    shape = ["--model_config", str(inputs() / "model.json"), "--optimizer", "adamw"]
    wrong = [["--save_every", "0"], ["--save_every", "2.5"], ["--save_every", "2d"], ["--continue_from", "auto"]]
    for words in wrong:
        with pytest.raises(UsageError, match=words[0]):
            parse_config([*shape, *words], world_size=1)
