"""A resumed run sees exactly what an uninterrupted one sees: with shuffle, workers, and other numbers of ranks."""

import json
from typing import Any

import pytest

from peft_pretraining.data import merge_states
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import Ranks, open_data, texts_of

UPDATES = 120  # 960 rows: more than two passes over 420 documents


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "packed"])
def flags(request: pytest.FixtureRequest, c4: str, tokenizer: str) -> dict[str, Any]:
    return {"dataset": c4, "tokenizer": tokenizer, "packing": request.param, "lanes": 8}


@pytest.fixture(scope="module")
def uninterrupted(flags: dict[str, Any]) -> list[str]:
    return Ranks(**flags).digests(UPDATES)


def test_a_chain_of_resumes_equals_the_uninterrupted_run(flags: dict[str, Any], uninterrupted: list[str]) -> None:
    run, seen = Ranks(**flags), []
    for updates in (0, 1, 7, 0, 1, 50, 3, 40, 18):
        seen += run.digests(updates)
        run = Ranks(state=run.state(), **flags)
    assert seen == uninterrupted


def test_a_resume_on_another_number_of_ranks_goes_on_exactly(flags: dict[str, Any], uninterrupted: list[str]) -> None:
    run, seen = Ranks(1, **flags), []
    for updates, world_size in ((5, 2), (30, 4), (1, 8), (0, 1), (44, 2), (40, 1)):
        seen += run.digests(updates)
        run = Ranks(world_size, state=run.state(), **flags)
    assert seen == uninterrupted


def test_workers_change_neither_the_rows_nor_the_position(flags: dict[str, Any], uninterrupted: list[str]) -> None:
    state, seen = None, []
    for updates, workers in ((9, 3), (1, 2), (20, 1)):
        run = Ranks(state=state, **{**flags, "workers": workers})
        seen += run.digests(updates)
        state = run.state()
        run.close()
    assert seen == uninterrupted[: len(seen)]


def test_the_micro_batches_of_one_process_are_those_of_several(flags: dict[str, Any]) -> None:
    one = Ranks(1, batch_size=2, **flags).digests(4)
    two = Ranks(2, batch_size=2, **flags).digests(4)
    assert one == two


def test_every_document_comes_once_a_pass(c4: str, tokenizer: str) -> None:
    data = open_data(dataset=c4, tokenizer=tokenizer, max_length=256, lanes=4)
    first = list(texts_of(data, 420 // 8 - 1))
    assert len(set(first)) == len(first)
    # Lanes may be a few documents apart: 420 rows and the slack of four lanes hold them all.
    everything = {text.split()[0] for text in (*first, *texts_of(data, 6))}
    assert len(everything) == 420


def test_the_seed_changes_the_order_and_a_pass_differs_from_the_next(c4: str, tokenizer: str) -> None:
    def rows(**more: Any) -> list[str]:
        return list(texts_of(open_data(dataset=c4, tokenizer=tokenizer, **more), 4))

    assert rows() == rows(data_seed=0)
    assert rows(data_seed=1) != rows(data_seed=0)
    data = open_data(dataset=c4, tokenizer=tokenizer, lanes=1, global_batch=420)
    first, second = (list(texts_of(data, 1)) for _ in range(2))
    assert first != second and sorted(first) == sorted(second)


def test_prepared_updates_are_not_part_of_the_position(flags: dict[str, Any]) -> None:
    run = Ranks(**{**flags, "workers": 2})
    run.digests(3)
    state = run.state()
    run.close()
    assert state["drawn"] == 3
    assert state == json.loads(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_seed": 3}, "data_seed"),
        ({"shuffle_block": 17}, "shuffle_block"),
        ({"packing": None}, "packing"),
        ({"lanes": 4}, "--lanes 4"),
        ({"global_batch": 12}, "has 8 lanes, .* --total_batch_size 12"),
        ({"world_size": 3, "global_batch": 24}, "has 8 lanes, which 3 processes must divide"),
    ],
)
def test_another_order_is_refused(flags: dict[str, Any], change: dict[str, Any], named: str) -> None:
    state = Ranks(**flags).state()
    if "packing" in change:
        change = {"packing": not flags["packing"]}
    change = {"lanes": None, **change}
    with pytest.raises(UsageError, match=named):
        Ranks(state=state, **{**flags, **change})


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 3},
        {"order": None},
        {"lanes": "eight"},
        {"lanes": 0},
        {"drawn": None},
        {"cursors": [1]},
        {"cursors": {"0": {"epoch": -1}}},
        {"cursors": {"x": {}}},
    ],
)
def test_a_damaged_position_is_one_message(flags: dict[str, Any], damage: dict[str, Any]) -> None:
    state = {**Ranks(**flags).state(), **damage}
    with pytest.raises(UsageError, match="--continue_from"):
        Ranks(state=state, **{**flags, "lanes": None})


def test_positions_of_different_updates_do_not_merge(flags: dict[str, Any]) -> None:
    one, two = Ranks(2, **flags).ranks
    next(one)
    with pytest.raises(ValueError, match="one update"):
        merge_states([one.state_dict(), two.state_dict()])


def test_skipped_batches_are_passed_over_also_after_a_resume(flags: dict[str, Any], uninterrupted: list[str]) -> None:
    skipping = {**flags, "skip_batches": "2-3,6-6"}
    run = Ranks(**skipping)
    seen = run.digests(1)
    run = Ranks(state=run.state(), **skipping)
    seen += run.digests(4)
    assert seen == [uninterrupted[number - 1] for number in (1, 4, 5, 7, 8)]
    assert run.state()["drawn"] == 8


def test_a_position_of_an_older_version_is_refused_or_means_the_same(c4: str, tokenizer: str) -> None:
    flags: dict[str, Any] = {"dataset": c4, "tokenizer": tokenizer}
    older = {**Ranks(lanes=8, **flags).state(), "version": 1}
    with pytest.raises(UsageError, match="format 1, this version reads 2: documents come in another order"):
        Ranks(state=older, lanes=8, **flags)
    alone = Ranks(lanes=1, **flags)  # a lane alone reads every shard whole, as before
    seen = alone.digests(3)
    older = {**alone.state(), "version": 1}
    assert seen + Ranks(state=older, lanes=1, **flags).digests(2) == Ranks(lanes=1, **flags).digests(5)
