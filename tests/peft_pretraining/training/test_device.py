"""What a run says of its device, and what it does where the device's memory ends."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peft_pretraining.distributed import device
from peft_pretraining.training import pretrain
from peft_pretraining.training.run import Run
from tests.tiny_runs import environment, train_here

NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # what TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
def test_the_first_line_names_the_device_and_float32_is_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tmp_path / "run", updates=1) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert "cpu: " in first and f"torch {torch.__version__}, CUDA" in first and "GiB of memory" in first
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="the driver works here")
@pytest.mark.parametrize("wanted", [None, "cpu"])
def test_a_gpu_that_stands_idle_is_told_unless_the_cpu_was_asked_for(
    wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft_pretraining.console import configure_logging

    monkeypatch.setattr(device, "DRIVER", tmp_path)
    configure_logging(0, processes=1)
    device.announce_device(torch.device("cpu"), wanted)
    said = capsys.readouterr().err
    assert ("WARNING" in said and "torch sees no GPU" in said and "--device cpu" in said) == (wanted is None)


@pytest.mark.parametrize("failure", NO_MEMORY, ids=str)
def test_out_of_memory_says_what_to_change(
    failure: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = pretrain.train_step, iter(range(9))

    def train_step(run: Run) -> object:
        if next(calls) == 4:
            run.updating = True
            raise failure
        return real(run)

    monkeypatch.setattr(pretrain, "train_step", train_step)
    assert train_here(tmp_path / "run") == 1
    said = capsys.readouterr().err
    for words in ("--batch_size", "--activation_checkpointing", "--per_layer", "python -m peft_pretraining.memory"):
        assert words in said
    assert "model_4" in said and "Traceback" not in said and str(failure).splitlines()[0] in said


def test_another_failure_is_not_called_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_step(run: object) -> object:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(pretrain, "train_step", train_step)
    with pytest.raises(RuntimeError, match="shapes"):
        train_here(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "unset"),
    ],
)
def test_segments_grow_unless_the_user_has_set_the_allocator(given: dict[str, str], expected: str) -> None:
    """And it is set before torch, which reads it once, is imported."""
    code = """if True:
        import os, sys
        from peft_pretraining.cli import main
        def parse(argv):
            print("torch" in sys.modules, os.environ.get("PYTORCH_ALLOC_CONF", "unset"))
            raise main.RunFailed("enough")
        main.parse_config = parse
        main.main([])"""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    clean = {name: value for name, value in environment().items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True)
    assert done.stdout.split() == ["False", expected]
