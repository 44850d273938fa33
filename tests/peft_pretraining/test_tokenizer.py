"""A tokenizer of one's own text: trained on training documents, and ready for a run as it is printed."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from peft_pretraining import tokenizer as command
from peft_pretraining.data import DataConfig, build_data
from peft_pretraining.data.holdout import is_held_out
from tests.peft_pretraining.data.corpora import documents, lines


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.jsonl").write_bytes(lines(documents(300)))
    return tmp_path / "text"


def test_it_is_trained_saved_and_printed_as_a_run_needs_it(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFT_CACHE", str(tmp_path / "cache"))
    flags = ["--dataset", str(text), "--vocab_size", "400", "--output", str(tmp_path / "own")]
    assert command.main(flags) == 0
    printed = capsys.readouterr().out
    fields = json.loads("{" + printed[printed.index('  "vocab_size"') : printed.index("and train")] + "}")
    assert fields == {"vocab_size": 400, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    saved = AutoTokenizer.from_pretrained(tmp_path / "own")
    assert len(saved) == 400 and saved.eos_token_id == 1
    assert saved.decode(saved("any d\u00e9tail\n")["input_ids"]) == "any d\u00e9tail\n"
    ids = []
    for path in ("own", "own/tokenizer.json"):
        config = DataConfig(dataset=str(text), tokenizer=str(tmp_path / path), workers=0, max_length=32)
        ids.append(next(build_data(config, vocab_size=400, batch_size=2, global_batch=8)).micro_batches[0].input_ids)
    assert ids[0].equal(ids[1])
    assert command.main(flags) == 2  # the folder is not empty any more


def test_a_tokenizer_file_alone_finds_its_special_tokens(text: Path, tmp_path: Path) -> None:
    assert command.main(["--dataset", str(text), "--vocab_size", "300", "--output", str(tmp_path / "own")]) == 0
    (tmp_path / "own/tokenizer.json").rename(tmp_path / "mine.json")
    config = DataConfig(dataset=str(text), tokenizer=str(tmp_path / "mine.json"), workers=0, max_length=32)
    data = build_data(config, vocab_size=300, batch_size=2, global_batch=8)
    assert (data.tokenizer.pad_token_id, data.tokenizer.eos_token_id) == (0, 1)


def test_held_out_documents_are_not_trained_on(text: Path) -> None:
    found = list(command.training_texts(DataConfig(dataset=str(text)), 10**9))
    assert found == [text for text in documents(300) if not is_held_out(text)]
    assert sum(map(len, command.training_texts(DataConfig(dataset=str(text)), 1))) < sum(map(len, found))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"vocab_size": 258}, "--vocab_size 258: give 259"),
        ({"vocab_size": 10**6}, "--vocab_size 1000000: the text gives no more than"),
        ({"dataset": "missing"}, "--dataset missing: no such file"),
    ],
)
def test_mistakes_are_one_message(text: Path, tmp_path: Path, flags: dict[str, object], message: str) -> None:
    from loguru import logger

    found: list[str] = []
    sink = logger.add(lambda line: found.append(line.record["message"]))
    given = {"dataset": text, "vocab_size": 300, "output": tmp_path / "out", **flags}
    assert command.main([word for name, value in given.items() for word in (f"--{name}", str(value))]) == 2
    logger.remove(sink)
    assert message in found[-1]
    assert not os.path.exists(tmp_path / "out")
