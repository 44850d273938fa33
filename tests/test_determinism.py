"""The same command gives the same metrics, and each seed moves its own thing only."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.distributed.world import session
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step
from tests.tiny_runs import flags, records, train, train_here

STOCHASTIC = ("--optimizer", "galore_adamw", "--rank", "8", "--proj_type", "random", "--weight_rounding", "stochastic")
DRAWS = (*STOCHASTIC, "--state_dtype", "bfloat16", "--dtype", "bf16", "--lr", "1e-2")


@pytest.fixture(autouse=True)
def any_kernels_afterwards() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("optimizer", [DRAWS, ("--optimizer", "ldadamw", "--rank", "8", "--lr", "1e-3")])
def test_the_same_command_twice_in_one_process(tmp_path: Path, optimizer: tuple[str, ...]) -> None:
    for name, workers in (("a", "0"), ("b", "0"), ("c", "2"), ("d", "2")):
        assert train_here(tmp_path / name, "--deterministic", "true", "--workers", workers, *optimizer) == 0
    first, *others = (records(tmp_path / name) for name in "abcd")
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_same_command_twice_in_two_processes(tmp_path: Path, workers: str) -> None:
    for name in "ab":
        more = ("--deterministic", "true", "--workers", workers, *DRAWS)
        assert train(tmp_path / name, *more, processes=2).returncode == 0
    assert records(tmp_path / "a") == records(tmp_path / "b")


def moved(folder: Path, *more: str) -> tuple[Tensor, Tensor, Tensor]:
    """The first weights, the first update's tokens, and what that update made of the weights."""
    config = parse_config(["--single_gpu", *flags(folder, *DRAWS, "--warmup_steps", "0", *more)])
    with ExitStack() as stack:
        world = stack.enter_context(session(config.parallel))
        run = restore_or_start(config, world, StopSignals(), stack.enter_context(run_folder(config, world)))
        before = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
        position = run.data.state_dict()
        tokens = torch.cat([batch.input_ids for batch in next(run.data).micro_batches])
        run.data.load_state_dict(position)
        train_step(run)
        after = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    return before, tokens, after


@pytest.mark.parametrize(
    ("flag", "same"),
    [
        (("--seed", "1", "--data_seed", "0"), (False, True, False)),
        (("--data_seed", "1"), (True, False, False)),
        (("--rounding_seed", "1"), (True, True, False)),
        ((), (True, True, True)),
    ],
)
def test_each_seed_moves_its_own_thing(tmp_path: Path, flag: tuple[str, ...], same: tuple[bool, ...]) -> None:
    usual, other = moved(tmp_path / "a"), moved(tmp_path / "b", *flag)
    assert tuple(torch.equal(one, two) for one, two in zip(usual, other, strict=True)) == same
