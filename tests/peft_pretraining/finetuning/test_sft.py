"""run_sft.py: layouts, masks, the loss of responses against a plain computation, exact matches."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import run_sft
from peft_pretraining.errors import UsageError
from peft_pretraining.finetuning.instruction import response_loss
from peft_pretraining.finetuning.pairs import (
    IGNORED,
    Pair,
    ResponseCollator,
    exact_match,
    final_number,
    read_pairs,
    to_row,
)
from tests.peft_pretraining.finetuning.models import save_llama, tokenizer

LEARN = ["--optimizer", "adamw", "--lr", "1e-2", "--batch_size", "8", "--num_train_epochs", "16"]


def write_sums(path: Path, count: int, seed: int) -> Path:
    """GSM8K's layout: a sum as question, an answer that ends in #### N."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = rng.randint(0, 2), rng.randint(0, 2)
        rows.append({"question": f"what is {a} plus {b} ?", "answer": f"it is {a + b} #### {a + b}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    save_llama(folder / "llama")
    write_sums(folder / "train.jsonl", 128, 0)
    write_sums(folder / "test.jsonl", 16, 1)
    return folder


def command(place: Path, *further: str) -> list[str]:
    files = ["--train_file", str(place / "train.jsonl"), "--validation_file", str(place / "test.jsonl")]
    model = ["--model_name_or_path", str(place / "llama"), "--device", "cpu", "--max_length", "32"]
    return [*model, *files, "--output_dir", str(place / "out"), "--dtype", "float32", *further]


def test_learns_sums(place: Path) -> None:
    """The response loss falls to a fraction, sums are answered, and the saved model gives the reported loss."""
    assert run_sft.main(command(place, *LEARN, "--generate", "8", "--max_new_tokens", "8")) == 0
    found = json.loads((place / "out" / "results.json").read_text())["seeds"][0]["last"]
    assert found["validation loss"] < 0.2 * found["validation loss before"]
    assert found["validation exact match"] >= 0.75
    model = AutoModelForCausalLM.from_pretrained(place / "out" / "model")
    rows = [to_row(pair, tokenizer(), 32) for pair in read_pairs("--validation_file", str(place / "test.jsonl"))]
    assert response_loss(model, rows, 0, 3) == pytest.approx(found["validation loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["ldadamw --rank 4", "sgd_boost --state_dtype int8"])
def test_other_methods_lower_the_loss(place: Path, method: str) -> None:
    flags = f"--optimizer {method} --lr 1e-2 --batch_size 8 --num_train_epochs 2".split()
    assert run_sft.main(command(place, *flags)) == 0
    found = json.loads((place / "out" / "results.json").read_text())["seeds"][0]["last"]
    assert found["validation loss"] < 0.9 * found["validation loss before"]


def test_prompt_has_no_loss(place: Path) -> None:
    """The loss of a padded batch is the mean over response tokens of each row's own float64 log-probabilities."""
    model = AutoModelForCausalLM.from_pretrained(place / "llama", dtype="float64")
    pairs = [Pair("what is 1 plus 2 ?", "it is 3 #### 3"), Pair("Add 4", "5"), Pair("a", "so it is very good")]
    rows = [to_row(pair, tokenizer(), 32) for pair in pairs]
    total, count = 0.0, 0
    for pair, row in zip(pairs, rows, strict=True):
        prompt = len(tokenizer()(pair.prompt, add_special_tokens=False)["input_ids"])
        assert row["labels"][:prompt] == [IGNORED] * prompt and IGNORED not in row["labels"][prompt:]
        logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for position in range(prompt, len(row["input_ids"])):
            total -= float(logits[position - 1, row["input_ids"][position]])
            count += 1
    assert response_loss(model, rows, 0, 8) == pytest.approx(total / count, rel=1e-6)
    batch = ResponseCollator(0)(rows)
    assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-6)


def test_long_pairs_keep_the_response() -> None:
    row = to_row(Pair("the film was very good and so it is not bad", "so it is"), tokenizer(), 6)
    assert len(row["input_ids"]) == 6
    kept = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer().decode(kept, skip_special_tokens=True) == "so it is"
    assert tokenizer().decode(row["input_ids"][:2]) == "not bad"


@pytest.mark.parametrize(
    "text, number",
    [("so 3 + 4 #### 7", "7"), ("#### 1,234", "1234"), ("#### -5.50.", "-5.5"), ("#### 40", "40"), ("it is 7", None)],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_exact_match_counts_answers_without_a_number_as_wrong() -> None:
    pairs = [Pair("", "#### 1"), Pair("", "#### 2")]
    assert exact_match(["#### 1", "two"], pairs) == 0.5


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"prompt": "a", "response": "b"}, "a"),
        ({"prompt": "a", "completion": "b"}, "a"),
        ({"instruction": "a", "input": "c", "output": "b"}, "### Instruction:\na\n\n### Input:\nc\n\n### Response:\n"),
        ({"instruction": "a", "input": "", "output": "b"}, "### Instruction:\na\n\n### Response:\n"),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, str], prompt: str) -> None:
    (tmp_path / "one.json").write_text(json.dumps([row]))
    (tmp_path / "one.jsonl").write_text("\ufeff" + json.dumps(row) + "\n\n")
    for name in ("one.json", "one.jsonl"):
        assert read_pairs("--train_file", str(tmp_path / name)) == [Pair(prompt, "b")]


@pytest.mark.parametrize(
    "content, message",
    [("", "no examples"), ("{", "line 1: not valid JSON"), ('{"text": "a"}', "has the fields text"), ("[1]", "object")],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_pairs("--train_file", str(tmp_path / "bad.jsonl"))
