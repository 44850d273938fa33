"""The division of a corpus into lanes: even, complete, and the same for everybody."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_pretraining.data.holdout import is_held_out
from peft_pretraining.data.lanes import choose_lanes
from peft_pretraining.data.plan import Plan
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


def plan_of(counts: list[int], lanes: int, name: str = "{}.jsonl", **more: Any) -> Plan:
    """A plan for shards of so many records of 100 bytes."""
    shards = tuple(Shard(f"/x/{i}", name.format(i), 100 * count) for i, count in enumerate(counts))
    return Plan(Corpus(shards, shards), lanes, seed=0, block=8, **more)


LOGNORMAL = [int(300 * np.exp(1.5 * x)) for x in np.random.default_rng(5).standard_normal(64)]
UNEVEN = [[20000], [10000, 10000], [19900, 100], [17000, 1000, 1000, 1000], [2400] * 8 + [400], LOGNORMAL, [3] * 5000]


@pytest.mark.parametrize("counts", UNEVEN, ids=lambda counts: f"{len(counts)} files")
@pytest.mark.parametrize("lanes", [1, 7, 16])
def test_lanes_share_uneven_files_evenly_and_completely(counts: list[int], lanes: int) -> None:
    plan = plan_of(counts, lanes)
    for epoch in range(2):
        owned: Counter[int] = Counter()
        seen: Counter[tuple[int, int]] = Counter()
        for lane in range(lanes):
            for shard, stripe, stripes in plan.pieces(lane, epoch):
                rows = range(stripe, counts[shard], stripes)
                owned[lane] += len(rows)
                seen.update((shard, row) for row in rows)
        assert len(seen) == sum(counts) and set(seen.values()) == {1}
        mean = sum(counts) / lanes
        assert max(abs(owned[lane] - mean) for lane in range(lanes)) <= max(0.015 * mean, 3)
    assert len({tuple(plan.pieces(0, epoch)) for epoch in range(9)}) > 1 or lanes == len(counts) == 1


@pytest.mark.parametrize(("shards", "lanes"), [(16, 16), (1024, 16), (64, 4)])
def test_equal_parts_of_one_data_set_are_read_by_one_lane_each(shards: int, lanes: int) -> None:
    plan = plan_of([1000] * shards, lanes, name=f"c4-train.{{:05d}}-of-{shards:05d}.json.gz")
    pieces = [plan.pieces(lane, 0) for lane in range(lanes)]
    assert {len(part) for part in pieces} == {shards // lanes}
    assert sorted(piece.shard for part in pieces for piece in part) == list(range(shards))
    assert all(piece.stripes == 1 for part in pieces for piece in part)


def test_a_lane_opens_its_own_shards_of_the_hub_only() -> None:
    shards = tuple(Shard(f"hf://datasets/x/{i}", f"{i}.json.gz", 10 + i % 7) for i in range(1024))
    pieces = [Plan(Corpus(shards, shards), 12, seed=0, block=8).pieces(lane, 0) for lane in range(12)]
    assert sorted(piece for part in pieces for piece in part) == [(i, 0, 1) for i in range(1024)]


@pytest.mark.parametrize("packed", [False, True])
def test_text_files_that_are_documents_are_opened_by_one_lane(packed: bool) -> None:
    counts = [1 + index % 50 for index in range(250)]
    plan = plan_of(counts, 8, name="{}.txt", packed=packed)
    pieces = [plan.pieces(lane, 0) for lane in range(8)]
    assert sorted(piece for part in pieces for piece in part) == [(i, 0, 1) for i in range(250)]
    shares = [sum(counts[piece.shard] if packed else 1 for piece in part) for part in pieces]
    assert max(shares) - min(shares) <= (50 if packed else 1)


@pytest.mark.parametrize("sizes", [[1900, 100], [60, 1000, 20, 400, 520], [1, 0, 1, 1998]])
def test_a_pass_over_uneven_files_sees_every_document_once(tmp_path: Path, tokenizer: str, sizes: list[int]) -> None:
    texts = [f"f{file}d{index}" for file, size in enumerate(sizes) for index in range(size)]
    for file, size in enumerate(sizes):
        (tmp_path / f"part{file}.jsonl").write_bytes(lines([f"f{file}d{index}" for index in range(size)]) or b"\n")
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(9, seed=1)))
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=8, global_batch=16, batch_size=16)
    found = Counter(texts_of(data, 2000 // 16))
    assert len({*found} & {*texts}) >= 0.995 * len(texts)
    assert max(found.values()) <= 2


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_a_single_file_serves_any_number_of_lanes(tmp_path: Path, tokenizer: str, lanes: int) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(documents(160)))
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(9, seed=1)))
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=lanes, max_length=256)
    assert sorted(texts_of(data, 20)) == sorted(documents(160))


def test_fewer_documents_than_lanes_come_to_all_lanes_in_turn(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(documents(3)))
    (tmp_path / "validation.jsonl").write_bytes(lines(documents(3)))
    for lanes in (1, 8):
        found = Counter(
            texts_of(open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=lanes, max_length=256), 30)
        )
        assert set(found) == set(documents(3))
        assert max(found.values()) <= 1.5 * min(found.values())


def test_shards_without_documents_are_passed_over(tmp_path: Path, tokenizer: str) -> None:
    text = next(text for text in documents(500) if is_held_out(text))
    for index in range(9):  # every document is held out
        (tmp_path / f"{index}.jsonl").write_bytes(lines([text]))
    (tmp_path / "9.jsonl").write_bytes(lines(documents(9)))
    found = set(texts_of(open_data(dataset=str(tmp_path), tokenizer=tokenizer, lanes=8, max_length=256), 20))
    assert found == {text for text in documents(9) if not is_held_out(text)}


def test_nothing_to_train_on_is_one_message_before_the_first_update(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([next(text for text in documents(500) if is_held_out(text))]))
    with pytest.raises(UsageError, match="no document to train on.*--holdout"):
        open_data(dataset=str(tmp_path), tokenizer=tokenizer).prepare()


def test_more_workers_than_lanes_are_refused_if_asked_for(c4: str, tokenizer: str) -> None:
    with pytest.raises(UsageError, match="--workers 3: .*give at most 2, or more --lanes"):
        open_data(dataset=c4, tokenizer=tokenizer, lanes=4, world_size=2, workers=3)
    open_data(dataset=c4, tokenizer=tokenizer, lanes=1, workers=None)


def test_a_batch_that_does_not_divide_is_refused(c4: str, tokenizer: str) -> None:
    with pytest.raises(UsageError, match="--total_batch_size 8 is no multiple of --batch_size 3"):
        open_data(dataset=c4, tokenizer=tokenizer, batch_size=3)
