"""What fails fails before the first update, and what the data holds is said there."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loguru import logger

import torchrun_main
from peft_pretraining.data import DataConfig, build_data, survey
from peft_pretraining.data.holdout import is_held_out
from peft_pretraining.errors import UsageError
from tests import tiny_runs
from tests.peft_pretraining.data.corpora import VOCABULARY, Ranks, documents, lines, open_data


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []
    sink = logger.add(lambda message: found.append(message.record["message"]), level="INFO")
    yield found
    logger.remove(sink)


@pytest.mark.parametrize("workers", [0, 2])
def test_preparing_moves_nothing(c4: str, tokenizer: str, workers: int) -> None:
    flags: dict[str, Any] = {"dataset": c4, "tokenizer": tokenizer, "lanes": 4}
    expected = Ranks(**flags).digests(5)
    run = Ranks(workers=workers, **flags)
    for data in run.ranks:
        data.prepare()
    assert run.state()["drawn"] == 0 and run.state()["cursors"] == {}
    seen = run.digests(2)
    state = run.state()
    run.close()
    resumed = Ranks(state=state, **flags)
    resumed.ranks[0].prepare()
    assert resumed.state() == state
    assert seen + resumed.digests(3) == expected


def test_a_run_without_validation_documents_ends_before_its_first_update(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text in documents(60) if not is_held_out(text)][:20]
    (tmp_path / "few.jsonl").write_bytes(lines(texts))
    flags = tiny_runs.flags(tmp_path / "run", "--dataset", str(tmp_path / "few.jsonl"))
    assert torchrun_main.main(["--single_gpu", *flags]) == 2
    message = capfd.readouterr().err
    assert "no document to validate on" in message and "--eval_dataset" in message and "--holdout" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_cache_that_cannot_be_written_is_named(
    c4: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="the cache folder .*/file/cache cannot be written: .*THRIFT_CACHE"):
        open_data(dataset=c4, tokenizer=tokenizer)


def test_a_byte_order_mark_before_an_array_is_passed_over(tmp_path: Path, tokenizer: str) -> None:
    texts = documents(200)
    for name, start in (("a.json", b"\xef\xbb\xbf"), ("b.json", b"\xef\xbb\xbf\n ")):
        (tmp_path / name).write_bytes(start + json.dumps([{"text": text} for text in texts]).encode())
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer, max_length=256)
    data.prepare()
    assert next(data).micro_batches[0].lengths.min() > 2


def test_documents_tokens_and_padding_are_counted(tmp_path: Path, tokenizer: str, log: list[str]) -> None:
    texts = documents(300)
    (tmp_path / "a.jsonl").write_bytes(lines(texts[:100]))
    (tmp_path / "b.jsonl").write_bytes(lines(texts[100:]))
    flags: dict[str, Any] = {"dataset": str(tmp_path), "tokenizer": tokenizer, "max_length": 128}
    data = open_data(**flags)
    counts = [len(ids) for ids in data._encoder.documents(texts)]
    data.prepare()
    padding = 1 - sum(min(count, 128) for count in counts) / (128 * len(counts))
    assert padding > 0.3
    assert f"2 files, 300 documents, {sum(counts):,} tokens, median" in "\n".join(log)
    assert any(f"{padding:.0%} padding" in line and "--packing" in line for line in log)
    log.clear()
    open_data(packing=True, **flags).prepare()
    assert not any("padding" in line for line in log)


def test_a_streamed_corpus_is_described_by_its_first_rows(
    c4: str, tokenizer: str, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "survey", lambda *_: None)
    data = open_data(dataset=c4, tokenizer=tokenizer, max_length=128)
    data.prepare()
    lengths = next(data).micro_batches
    padding = 1 - sum(int(batch.lengths.sum()) for batch in lengths) / (8 * 128)
    assert f"6 files, streamed; the first 8 rows of 128 tokens: {padding:.0%} padding" in "\n".join(log)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_large_files_are_estimated(
    tmp_path: Path, tokenizer: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(6000)
    for part in range(2):
        path, own = tmp_path / f"{part}{ending}", texts[part::2]
        if ending == ".parquet":
            pq.write_table(pa.table({"text": own}), path)
        else:
            path.write_bytes(gzip.compress(lines(own)) if ending.endswith("gz") else lines(own))
    monkeypatch.setattr(survey, "_CHARACTERS", 200_000)
    data = open_data(dataset=str(tmp_path), tokenizer=tokenizer)
    found = survey.survey(data._config, data._corpus, data._encoder)
    assert found is not None and not found.exact
    tokens = sum(len(ids) for ids in data._encoder.documents(texts))
    assert found.documents == pytest.approx(6000, rel=0.1)
    assert found.tokens == pytest.approx(tokens, rel=0.1)


def test_a_wasteful_vocabulary_and_too_few_positions_are_noticed(c4: str, tokenizer: str, log: list[str]) -> None:
    config = DataConfig(dataset=c4, tokenizer=tokenizer, workers=0, max_length=64)
    data = build_data(config, vocab_size=32000, batch_size=1, global_batch=8, positions=32)
    warned = "\n".join(log)
    assert f"of 32,000 is much larger than the tokenizer's {len(data.tokenizer)} ids" in warned
    assert "--max_length 64 is more than the model's 32 positions" in warned
    log.clear()
    build_data(config, vocab_size=VOCABULARY, batch_size=1, global_batch=8, positions=64)
    assert log == []
