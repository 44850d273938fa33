"""One update: what is summed, clipped, skipped and told."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from loguru import logger

import optimizers
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.distributed.world import session
from peft_pretraining.errors import UsageError
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import Run, restore_or_start, run_folder
from peft_pretraining.training.step import TrainingStopped, clip_gradients, gradient_norm, train_step
from tests.tiny_runs import flags, losses, train_here


@contextmanager
def built(folder: Path, *more: str) -> Iterator[Run]:
    config = parse_config(["--single_gpu", *flags(folder, *more)])
    with ExitStack() as stack:
        world = stack.enter_context(session(config.parallel))
        stop = stack.enter_context(StopSignals())
        yield restore_or_start(config, world, stop, stack.enter_context(run_folder(config, world)))


def snapshot(run: Run) -> list[torch.Tensor]:
    tensors = list(run.model.parameters())
    tensors += [value for state in run.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize(("batch_size", "packing"), [("1", False), ("2", False), ("8", False), ("2", True)])
def test_accumulation_changes_nothing(tmp_path: Path, batch_size: str, packing: bool) -> None:
    """Documents of any length weigh by their tokens, however an update is cut into micro-batches."""
    packed = ["--packing", "true"] if packing else []
    assert train_here(tmp_path / "a", *packed) == 0
    assert train_here(tmp_path / "b", "--batch_size", batch_size, *packed) == 0
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)


def test_the_loss_is_that_of_the_whole_update_before_it(tmp_path: Path) -> None:
    with built(tmp_path / "other") as other:
        batches = next(other.data).micro_batches
    with built(tmp_path / "run") as run:
        with torch.no_grad():
            total = sum(float(run.model(batch.input_ids, batch.lengths)) for batch in batches)
        scored = sum(int((batch.lengths - 1).clamp_min(0).sum()) for batch in batches)
        result = train_step(run)
        assert result.loss == pytest.approx(total / scored, rel=1e-6)
        assert result.tokens == sum(int(batch.lengths.sum()) for batch in batches)


def test_the_norm_before_clipping_is_told_and_the_applied_one_is_bounded(tmp_path: Path) -> None:
    """With plain SGD the step is lr times the clipped gradient."""
    more = ("--optimizer", "sgd", "--beta1", "0", "--lr", "1", "--scheduler", "constant", "--warmup_steps", "0")
    with built(tmp_path / "run", *more, "--grad_clipping", "0.01", "--weight_decay", "0") as run:
        before = [p.detach().clone() for p in run.model.parameters()]
        result = train_step(run)
        moved = torch.stack([(p - q).norm() for p, q in zip(run.model.parameters(), before, strict=True)]).norm()
    assert result.grad_norm is not None and result.grad_norm > 0.1
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16() -> None:
    from peft_pretraining.distributed.world import World

    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 0.1)
    updates = optimizers.session(torch.optim.SGD([parameter], lr=1.0))
    world = World(torch.device("cpu"))
    norm = gradient_norm(updates, world)
    assert norm.dtype is torch.float32
    assert float(norm) == pytest.approx(float(parameter.grad.double().norm()), rel=1e-6)
    clip_gradients(updates, norm, 1.0)
    assert float(gradient_norm(updates, world)) == pytest.approx(1.0, rel=4e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "galore_adamw", "sgd_boost"])
def test_a_bad_update_is_skipped_and_touches_nothing(tmp_path: Path, optimizer: str) -> None:
    with built(tmp_path / "run", "--optimizer", optimizer) as run:
        train_step(run)
        weight = run.model.model.norm.weight
        kept = weight.detach().clone()
        weight.data[0] = math.inf
        before = snapshot(run)
        result = train_step(run)
        assert result.skipped and run.progress.skipped == 1 and run.progress.update == 2
        for now, then in zip(snapshot(run), before, strict=True):
            assert torch.equal(now, then)
        weight.data.copy_(kept)
        assert not train_step(run).skipped
        assert run.progress.bad_in_a_row == 0 and run.progress.skipped == 1


def test_a_bad_update_is_skipped_in_per_layer_mode_too(tmp_path: Path) -> None:
    more = ("--optimizer", "galore_adamw", "--per_layer", "true", "--batch_size", "8")
    with built(tmp_path / "run", *more) as run:
        train_step(run)
        run.model.model.norm.weight.data[0] = math.inf
        before = snapshot(run)
        assert train_step(run).skipped
        for now, then in zip(snapshot(run), before, strict=True):
            assert torch.equal(now, then)


def test_too_many_bad_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run") == 0
    more = ("--continue_from", "auto", "--num_training_steps", "30", "--max_bad_steps", "2")
    with built(tmp_path / "run", *more) as run:
        run.model.model.norm.weight.data[0] = math.nan
        train_step(run)
        train_step(run)
        with pytest.raises(TrainingStopped, match="model_12"):
            train_step(run)


def test_a_loss_spike_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    with built(tmp_path / "run", "--num_training_steps", "60", "--lr", "1e-4") as run:
        for _ in range(25):
            train_step(run)
        sink = logger.add(said.append, level="WARNING", format="{message}")
        run.model.lm_head.weight.data.mul_(-300)
        train_step(run)
        logger.remove(sink)
    assert any("loss spike at update 26" in line for line in said)


def test_n_updates_are_n_and_the_first_moves_the_weights(tmp_path: Path) -> None:
    with built(tmp_path / "run", "--min_lr_ratio", "0") as run:
        before = [p.detach().clone() for p in run.model.parameters()]
        rates = [train_step(run).lr for _ in run.remaining_updates()]
        assert len(rates) == 12 and min(rates) > 0
        assert not torch.equal(before[0], next(iter(run.model.parameters())))


def test_groups_keep_their_own_multiple_of_the_rate(tmp_path: Path) -> None:
    with built(tmp_path / "run", "--scheduler", "linear", "--warmup_steps", "0") as run:
        run.optimizer.param_groups[0]["initial_lr"] = 5e-3
        for _ in range(7):
            train_step(run)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 * 0.5)


def test_per_layer_that_cannot_accumulate_is_refused_before_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tmp_path / "run", "--optimizer", "adamw_sn", "--per_layer", "true") == 2
    assert "per_layer" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["batch_size", "total_batch_size", "num_training_steps", "eval_every"])
def test_counts_are_positive(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} 0"):
        TrainingConfig(**{name: 0})
