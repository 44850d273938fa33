"""Evaluation is a property of the model and the tokens, not of how they are cut up."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from peft_pretraining.data import Batch
from peft_pretraining.distributed.world import World
from peft_pretraining.training.evaluation import evaluate_batches
from tests.tiny_runs import records, train, train_here

ALONE = World(torch.device("cpu"))


class Uneven(nn.Module):
    """A model whose loss for a row is the sum of its tokens; it notes the mode it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.modes.add(self.training)
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return (input_ids * mask).sum().float()


def batches(size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (30, 16), generator=generator)
    lengths = torch.randint(0, 17, (30,), generator=generator)
    return [Batch(i, n, 4 * n) for i, n in zip(ids.split(size), lengths.split(size), strict=True)]


def oracle() -> tuple[float, int, int]:
    whole = batches(30)[0]
    total = float(sum(row[:n].sum() for row, n in zip(whole.input_ids, whole.lengths, strict=True)))
    return total, sum(max(int(n) - 1, 0) for n in whole.lengths), int(whole.bytes.sum())


@pytest.mark.parametrize("size", [1, 7, 30])
def test_sum_of_losses_over_tokens_whatever_the_batch_size(size: int) -> None:
    total, tokens, size_of_text = oracle()
    result = evaluate_batches(Uneven(), batches(size), ALONE)
    assert result is not None
    assert result.loss == pytest.approx(total / tokens, rel=1e-12)
    assert result.tokens == tokens
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / size_of_text, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-12)


def test_the_published_figure_is_the_mean_of_batch_means_with_one_batch_too_many() -> None:
    means = []
    for batch in batches(10):
        total = sum(float(row[:n].sum()) for row, n in zip(batch.input_ids, batch.lengths, strict=True))
        means.append(total / sum(max(int(n) - 1, 0) for n in batch.lengths))
    result = evaluate_batches(Uneven(), batches(10), ALONE, published=True)
    assert result is not None
    assert result.loss == pytest.approx(sum(means) / 4, rel=1e-12)


def test_evaluation_mode_is_on_and_taken_back() -> None:
    model = Uneven()
    model.train()
    evaluate_batches(model, batches(10), ALONE)
    assert model.modes == {False} and model.training


def test_it_is_given_up_when_the_run_is_asked_to_stop() -> None:
    assert evaluate_batches(Uneven(), batches(1), ALONE, abandon=lambda: True) is None


def test_an_exploding_loss_has_an_infinite_perplexity() -> None:
    from peft_pretraining.training.evaluation import Evaluation

    assert Evaluation(800.0, 1, 1.0).perplexity == math.inf


def test_real_runs_agree_for_any_batch_size_and_number_of_processes(tmp_path: Path) -> None:
    assert train_here(tmp_path / "a", updates=4) == 0
    assert train_here(tmp_path / "b", "--batch_size", "8", updates=4) == 0
    done = train(tmp_path / "c", "--batch_size", "2", processes=2, updates=4)
    assert done.returncode == 0, done.stderr
    first, *others = ([r for r in records(tmp_path / name) if "eval_loss" in r][0] for name in "abc")
    for other in others:
        assert other["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
        assert other["eval_tokens"] == first["eval_tokens"]


def test_the_published_figure_is_marked(tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", "--evaluation", "published", updates=4) == 0
    line = next(r for r in records(tmp_path / "run") if "eval_loss" in r)
    assert line["eval_published"] is True
