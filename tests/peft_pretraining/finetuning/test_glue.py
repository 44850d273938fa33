"""run_glue.py on a tiny encoder and made sentences: it learns, the numbers are those of a plain evaluation."""

import csv
import json
import random
from pathlib import Path

import pytest

import run_glue
from peft_pretraining.finetuning.adapters import add_lora
from peft_pretraining.finetuning.pretrained import load_classifier
from peft_pretraining.finetuning.tasks import GLUE, load_task
from tests.peft_pretraining.finetuning.models import save_bert

GOOD, BAD, FILLER = ("good", "fine", "great"), ("bad", "poor", "awful"), ("the", "film", "was", "very", "so", "it")


def write_reviews(path: Path, count: int, seed: int) -> Path:
    """Sentences whose one telling word decides the label; labels as words."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        liked = rng.random() < 0.6
        words = [*rng.sample(FILLER, 4), rng.choice(GOOD if liked else BAD)]
        rng.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": "liked" if liked else "disliked"})
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["sentence", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    save_bert(folder / "bert")
    write_reviews(folder / "train.csv", 192, 0)
    write_reviews(folder / "dev.jsonl", 64, 1)
    return folder


def command(place: Path, *further: str, train: str = "train.csv") -> list[str]:
    files = ["--train_file", str(place / train), "--validation_file", str(place / "dev.jsonl")]
    model = ["--model_name_or_path", str(place / "bert"), "--device", "cpu", "--max_length", "16"]
    return [*model, *files, "--output_dir", str(place / "out"), *further]


def results(place: Path) -> dict:
    return json.loads((place / "out" / "results.json").read_text())


def test_learns_and_reports_every_seed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--optimizer", "adamw", "--lr", "1e-2", "--num_train_epochs", "4", "--seed", "0,1"]
    assert run_glue.main(command(place, *flags)) == 0
    found = results(place)
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    for seed in found["seeds"]:
        assert seed["majority"] < 0.75 < 0.95 < seed["best"]["validation accuracy"]
        assert seed["best"]["validation accuracy"] >= seed["last"]["validation accuracy"]
        assert seed["epochs"] == 4.0
    printed = capsys.readouterr().out
    assert "validation accuracy" in printed and "±" in printed


def test_published_galore_line_is_understood(place: Path) -> None:
    """The flags of GaLore's README, one micro-batch accumulated: half the updates, decay kept for projected groups."""
    published = "--enable_galore --lora_all_modules --lora_r 4 --galore_scale 4 --update_proj_gap 5"
    flags = f"{published} --learning_rate=2e-3 --num_train_epochs 4 --weight_decay 0.1 --seed=1234".split()
    assert run_glue.main(command(place, *flags, "--gradient_accumulation_steps", "2")) == 0
    found = results(place)
    assert found["settings"]["rank"] == 4 and found["settings"]["optimizer"] == "galore_adamw"
    assert found["settings"]["weight_decay"] == 0.1
    assert found["seeds"][0]["best"]["validation accuracy"] > found["seeds"][0]["majority"]


def test_lora_trains_adapters_and_head_only(place: Path) -> None:
    pytest.importorskip("peft")
    flags = ["--optimizer", "adamw", "--lr", "3e-2", "--num_train_epochs", "4", "--lora_rank", "4"]
    assert run_glue.main(command(place, *flags)) == 0
    seed = results(place)["seeds"][0]
    assert seed["best"]["validation accuracy"] > seed["majority"]


def test_lora_freezes_all_else(place: Path) -> None:
    pytest.importorskip("peft")
    model = add_lora(load_classifier(str(place / "bert"), 2, False)[0], 4, classification=True)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name or "classifier" in name for name in trained)


def test_regression_reports_correlations(place: Path) -> None:
    for name, seed in (("train.tsv", 0), ("dev.tsv", 1)):
        rng = random.Random(seed)
        rows = [(rng.sample(FILLER, 3), rng.choice((*GOOD, *BAD))) for _ in range(128)]
        lines = [f"{' '.join(w)}\t{word}\t{float(word in GOOD)}" for w, word in rows]
        (place / name).write_text("sentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    model = ["--model_name_or_path", str(place / "bert"), "--device", "cpu", "--output_dir", str(place / "out")]
    files = ["--train_file", str(place / "train.tsv"), "--validation_file", str(place / "dev.tsv")]
    flags = ["--optimizer", "adamw", "--lr", "1e-2", "--num_train_epochs", "4", "--task_name", "stsb"]
    assert run_glue.main([*model, *files, *flags]) == 0
    scores = results(place)["seeds"][0]["best"]
    assert scores["validation pearson"] > 0.8 and scores["validation spearman"] > 0.8


def test_mnli_keeps_both_splits() -> None:
    assert GLUE["mnli"].validation == ("validation_matched", "validation_mismatched")
    assert GLUE["mrpc"].metrics == ("accuracy", "f1")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--train_file", "missing.csv"], "missing.csv: no such file"),
        (["--task_name", "mrp", "--train_file", ""], "choose one of cola"),
        (["--seed", "0,0"], "a seed is given twice"),
        (["--rank", "4"], "rank"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0"),
        (["--model_name_or_path", "nowhere"], "--model_name_or_path nowhere"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    place: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_glue.main(command(place, "--optimizer", "adamw", "--lr", "1e-3", *flags)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_files_without_labels_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bare.csv").write_text("sentence\ngood film\n")
    assert run_glue.main(command(place, "--optimizer", "adamw", "--lr", "1e-3", train="bare.csv")) == 2
    assert "no column 'label'" in capsys.readouterr().err


def test_labels_are_numbered_alike_in_both_files(place: Path) -> None:
    data = load_task(None, str(place / "train.csv"), str(place / "dev.jsonl"))
    assert data.labels == ("disliked", "liked")
    row = data.validation["validation"][0]
    assert row["label"] == int(any(word in GOOD for word in row["sentence"].split()))
