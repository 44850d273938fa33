"""Continuing a text from the command line, from a real checkpoint folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peft_pretraining.errors import UsageError
from peft_pretraining.generate import continue_text, load_checkpoint, main
from peft_pretraining.model.export import save_model
from tests.peft_pretraining.tiny import tiny_model

WORDS = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(93))]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    save_model(tiny_model(tmp_path, {"eos_token_id": 7}), tmp_path / "model_5", tokenizer)
    return tmp_path / "model_5"


def test_the_tokenizer_decides_the_special_tokens(checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 1
    assert model.config.pad_token_id == 0


def test_a_seed_gives_one_text_and_no_temperature_the_likeliest(checkpoint: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)

    def text(temperature: float, seed: int) -> str:
        return continue_text(model, tokenizer, "w1 w2", max_tokens=20, temperature=temperature, seed=seed)

    assert text(1.0, 0) == text(1.0, 0) != text(1.0, 1)
    assert text(0.0, 0) == text(0.0, 1)
    assert text(1.0, 0).startswith("w1 w2 w")


def test_the_command_prints_the_text(checkpoint: Path, root: Path) -> None:
    command = [sys.executable, "-m", "peft_pretraining.generate", str(checkpoint), "w1", "--max_tokens", "4"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("w1 ")
    assert result.stderr == ""


def test_mistakes_end_with_status_2(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([str(tmp_path / "nowhere"), "w1"], "model_N"),
        ([str(checkpoint), ""], "prompt"),
        ([str(checkpoint), "w1", "--max_tokens", "0"], "--max_tokens 0"),
        ([str(checkpoint), "w1", "--temperature", "-1"], "--temperature"),
        ([str(checkpoint), "w1", "--device", "banana"], "--device banana"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert words in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UsageError, match="cannot be read"):
        load_checkpoint(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        load_checkpoint(checkpoint)


def test_a_run_folder_stands_for_its_newest_checkpoint_and_prompts_may_be_several(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.parent / "model_40").mkdir()
    checkpoint.rename(checkpoint.parent / "model_40" / "unused")
    (checkpoint.parent / "model_40" / "unused").rename(checkpoint.parent / "model_300")
    assert main([str(checkpoint.parent), "w1", "w2", "--max_tokens", "3"]) == 0
    first, blank, second = capsys.readouterr().out.splitlines()
    assert first.startswith("w1") and second.startswith("w2") and blank == ""


def test_one_token_to_choose_from_is_the_likeliest(checkpoint: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    likeliest = continue_text(model, tokenizer, "w1 w2", max_tokens=20, temperature=0)
    for only in ({"top_k": 1}, {"top_p": 1e-9}):
        assert continue_text(model, tokenizer, "w1 w2", max_tokens=20, temperature=2.0, seed=3, **only) == likeliest
    assert continue_text(model, tokenizer, "w1 w2", max_tokens=20, temperature=2.0, seed=3) != likeliest
