"""Files of token ids give the rows that the texts they were made of give."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_pretraining.data import token_files
from peft_pretraining.errors import UsageError
from tests.peft_pretraining.data.corpora import Ranks, documents, lines, open_data

TEXTS = documents(200)


def rows(updates: int, **flags: Any) -> Counter[tuple[int, ...]]:
    data = open_data(workers=0, global_batch=8, **flags)
    return Counter(
        tuple(ids[:length].tolist())
        for _ in range(updates)
        for batch in next(data).micro_batches
        for ids, length in zip(batch.input_ids, batch.lengths, strict=True)
    )


def write(folder: Path, kind: str, tokenizer: str, texts: list[str], name: str) -> None:
    encoder = open_data(dataset=_text(folder.parent / "for_ids"), tokenizer=tokenizer)._encoder
    ids = encoder.documents(texts)
    if kind == "parquet":
        pq.write_table(pa.table({"input_ids": [each[:-1] for each in ids]}), folder / f"{name}.parquet")
        return
    stream = np.concatenate([np.asarray(each, dtype="<u2") for each in ids])
    header = np.zeros(256, dtype="<i4")
    header[0] = 20240520
    (folder / f"{name}.bin").write_bytes((header.tobytes() if kind == "llm.c" else b"") + stream.tobytes())


def _text(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_bytes(lines(TEXTS))
    (folder / "val.jsonl").write_bytes(lines(documents(9, seed=1)))
    return str(folder)


@pytest.mark.parametrize("kind", ["nanogpt", "llm.c", "parquet"])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_ids_give_the_rows_of_their_texts(
    tmp_path: Path, tokenizer: str, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_CHUNK", chunk)
    (tmp_path / "ids").mkdir()
    for name, texts in (("train", TEXTS), ("val", documents(9, seed=1))):
        write(tmp_path / "ids", kind, tokenizer, texts, name)
    flags: dict[str, Any] = {"tokenizer": tokenizer, "lanes": 1, "max_length": 48}
    column = {"text_column": "input_ids"} if kind == "parquet" else {}
    ids = rows(25, dataset=str(tmp_path / "ids"), **column, **flags)
    assert ids == rows(25, dataset=str(tmp_path / "for_ids"), **flags)
    evaluated = [
        [batch.input_ids.tolist() for batch in open_data(dataset=str(folder), **more, **flags).evaluation_batches(4)]
        for folder, more in ((tmp_path / "ids", column), (tmp_path / "for_ids", {}))
    ]
    assert evaluated[0] == evaluated[1]


def test_packed_ids_are_resumed_at_the_next_token(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "ids").mkdir()
    write(tmp_path / "ids", "nanogpt", tokenizer, TEXTS, "data")
    flags: dict[str, Any] = {"dataset": str(tmp_path / "ids"), "tokenizer": tokenizer, "lanes": 4, "packing": True}
    expected = Ranks(**flags).digests(30)
    run = Ranks(2, **flags)
    seen = run.digests(11)
    assert seen + Ranks(state=run.state(), **flags).digests(19) == expected


def test_a_stretch_without_an_end_is_cut(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "LONGEST_DOCUMENT", 1000)
    np.arange(10, 10 + 590, dtype="<u2").repeat(20).tofile(tmp_path / "data.bin")
    found = rows(3, dataset=str(tmp_path / "data.bin"), tokenizer=tokenizer, lanes=1, holdout=3)
    assert max(map(len, found)) == 32


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: str) -> None:
    np.full(5000, 60000, dtype="<u2").tofile(tmp_path / "data.bin")
    np.full(9, 10, dtype="<u2").tofile(tmp_path / "val.bin")
    with pytest.raises(UsageError, match="token id 60000, and the model's vocab_size is 600"):
        open_data(dataset=str(tmp_path), tokenizer=tokenizer).prepare()
