"""The division of a corpus into lanes: even, complete, and the same for everybody."""

from pathlib import Path

import pytest

from peft_pretraining.data.lanes import Plan, choose_lanes
from peft_pretraining.data.shards import Corpus, Shard
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import documents, lines, open_data, texts_of


@pytest.mark.parametrize(
    ("global_batch", "world_size", "lanes"),
    [
        (512, 1, 16),
        (512, 8, 16),
        (512, 64, 128),
        (24, 1, 12),
        (24, 3, 12),
        (7, 1, 7),
        (1, 1, 1),
        (510, 1, 10),
        (40, 40, 40),
    ],
)
def test_lanes_suit_any_batch_and_number_of_processes(global_batch: int, world_size: int, lanes: int) -> None:
    assert choose_lanes(None, global_batch, world_size) == lanes


@pytest.mark.parametrize(("wanted", "global_batch", "world_size"), [(5, 16, 1), (4, 16, 8), (32, 16, 1)])
def test_impossible_lanes_are_refused_with_those_that_work(wanted: int, global_batch: int, world_size: int) -> None:
    with pytest.raises(UsageError, match=rf"--lanes {wanted} must divide .*: one of .*16"):
        choose_lanes(wanted, global_batch, world_size)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("shards", "lanes"), [(1, 1), (1, 16), (6, 4), (16, 12), (100, 7), (1024, 16), (3, 7)])
def test_every_piece_falls_to_one_lane_and_lanes_get_even_parts(shards: int, lanes: int, remote: bool) -> None:
    root = "hf://datasets/x/" if remote else "/data/"
    files = tuple(Shard(f"{root}{index}.json", f"{index}.json", 10) for index in range(shards))
    plan = Plan(Corpus(files, files), lanes, seed=0, block=8)
    for epoch in range(3):
        parts = [plan.pieces(lane, epoch) for lane in range(lanes)]
        pieces = sorted(piece for part in parts for piece in part)
        assert pieces == [(shard, stripe) for shard in range(shards) for stripe in range(plan.stripes)]
        sizes = [len(part) for part in parts]
        assert max(sizes) <= 1.2 * min(sizes) or (remote and plan.stripes == 1)
    assert plan.pieces(0, 0) != plan.pieces(0, 1) or shards * plan.stripes <= lanes


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_a_single_file_serves_any_number_of_lanes(tmp_path: Path, tokenizer: str, lanes: int) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(documents(160)))
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(9, seed=1)))
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=lanes, max_length=256)
    assert sorted(texts_of(data, 20)) == sorted(documents(160))


def test_too_few_documents_are_one_message(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(documents(3)))
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(3)))
    with pytest.raises(UsageError, match=r"no document in the share of lane \d of 8.*fewer --lanes"):
        next(open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=8))
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=1, max_length=256)
    assert set(texts_of(data, 2)) == set(documents(3))


def test_more_workers_than_lanes_are_refused_if_asked_for(c4: str, tokenizer: str) -> None:
    with pytest.raises(UsageError, match="--workers 3: .*give at most 2, or more --lanes"):
        open_data(dataset=c4, tokenizer=tokenizer, lanes=4, world_size=2, workers=3)
    open_data(dataset=c4, tokenizer=tokenizer, lanes=1, workers=None)


def test_a_batch_that_does_not_divide_is_refused(c4: str, tokenizer: str) -> None:
    with pytest.raises(UsageError, match="--total_batch_size 8 is no multiple of --batch_size 3"):
        open_data(dataset=c4, tokenizer=tokenizer, batch_size=3)
