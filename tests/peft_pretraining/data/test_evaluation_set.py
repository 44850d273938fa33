"""The validation set is the same rows for any batch size, number of ranks, and run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from peft_pretraining.data.holdout import is_held_out
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import documents, lines, open_data, texts_of


def rows(batch_size: int, world_size: int = 1, **flags: Any) -> list[tuple[int, ...]]:
    """All rows of all ranks, put back in order."""
    ranks = [
        [
            tuple(ids[:length].tolist())
            for batch in open_data(rank, world_size, **flags).evaluation_batches(batch_size)
            for ids, length in zip(batch.input_ids, batch.lengths, strict=True)
        ]
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    return [row for turn in zip(*ranks, strict=True) for row in turn if row]


@pytest.mark.parametrize("packing", [False, True])
def test_batch_size_and_ranks_change_nothing(c4: str, tokenizer: str, packing: bool) -> None:
    flags = {"dataset": c4, "tokenizer": tokenizer, "packing": packing}
    expected = rows(4, **flags)
    assert len(expected) == 30 or packing
    for batch_size, world_size in ((1, 1), (7, 1), (4, 2), (3, 4), (64, 8)):
        assert rows(batch_size, world_size, **flags) == expected


def test_ranks_get_batches_of_the_same_shapes(c4: str, tokenizer: str) -> None:
    shapes = [
        [batch.input_ids.shape for batch in open_data(rank, 4, dataset=c4, tokenizer=tokenizer).evaluation_batches(3)]
        for rank in range(4)
    ]
    assert all(each == shapes[0] for each in shapes)


@pytest.mark.parametrize("tokens", [1, 100, 333])
def test_it_has_eval_tokens_tokens(c4: str, tokenizer: str, tokens: int) -> None:
    found = rows(5, dataset=c4, tokenizer=tokenizer, eval_tokens=tokens)
    assert sum(map(len, found)) == tokens


def test_the_order_of_training_does_not_matter(c4: str, tokenizer: str) -> None:
    flags = {"dataset": c4, "tokenizer": tokenizer}
    assert rows(4, **flags, data_seed=1, shuffle_block=3) == rows(4, **flags)


def test_without_a_split_a_share_is_held_out_by_content(tmp_path: Path, tokenizer: str) -> None:
    texts = documents(400)
    (tmp_path / "data.jsonl").write_bytes(lines(texts))
    held_out = {text for text in texts if is_held_out(text)}
    assert 4 <= len(held_out) <= 40
    flags: dict[str, Any] = {"dataset": str(tmp_path), "tokenizer": tokenizer, "max_length": 256, "lanes": 1}
    data = open_data(**flags)
    evaluated = {data.tokenizer.decode(list(row), skip_special_tokens=True) for row in rows(4, **flags)}
    assert evaluated == held_out
    assert not set(texts_of(data, 60)) & held_out


def test_a_rewritten_file_of_the_same_size_is_read_again(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(documents(9)))
    file = tmp_path / "validation.jsonl"
    file.write_bytes(lines(["one small word"]))
    before = rows(4, dataset=str(tmp_path), tokenizer=tokenizer)
    file.write_bytes(lines(["two small word"]))
    assert rows(4, dataset=str(tmp_path), tokenizer=tokenizer) != before


@pytest.mark.parametrize("torn", [b"", b"\0" * 400])
def test_a_torn_file_in_the_cache_is_made_again(
    c4: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path))
    before = rows(4, dataset=c4, tokenizer=tokenizer)
    for file in tmp_path.glob("validation/*.safetensors"):
        file.write_bytes(torn)
    assert rows(4, dataset=c4, tokenizer=tokenizer) == before


def test_training_goes_on_undisturbed_by_an_evaluation(c4: str, tokenizer: str) -> None:
    one, two = (open_data(dataset=c4, tokenizer=tokenizer) for _ in range(2))
    for _ in range(3):
        list(one.evaluation_batches(2))
        assert torch.equal(next(one).micro_batches[0].input_ids, next(two).micro_batches[0].input_ids)


def test_no_validation_document_is_one_message(tmp_path: Path, tokenizer: str) -> None:
    text = next(text for text in documents(50) if not is_held_out(text))
    (tmp_path / "data.jsonl").write_bytes(lines([text]))
    with pytest.raises(UsageError, match="no document to validate on"):
        list(open_data(dataset=str(tmp_path), tokenizer=tokenizer).evaluation_batches(2))
