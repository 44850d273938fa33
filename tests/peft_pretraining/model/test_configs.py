"""The published model shapes, and what is refused in a shape of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from peft_pretraining.errors import UsageError
from peft_pretraining.model.llama import ModelConfig, build_model, parameter_count
from peft_pretraining.model.shape import load_llama_config
from tests.peft_pretraining.tiny import TINY, write_config

MILLIONS_OF_WEIGHTS = {
    "9m": 8.996,
    "20m": 19.548,
    "35m": 35.198,
    "40m": 42.392,
    "60m": 58.074,
    "71m": 70.579,
    "100m": 100.117,
    "130m": 134.106,
    "250m": 247.370,
    "350m": 367.969,
    "1b": 1339.083,
    "3b": 2685.832,
    "7b": 6738.416,
}


@pytest.mark.parametrize("size", MILLIONS_OF_WEIGHTS)
def test_a_published_shape_has_its_number_of_weights(root: Path, size: str) -> None:
    path = root / "configs" / f"llama_{size}.json"
    model = build_model(ModelConfig(str(path)), "meta", seed=0)
    assert parameter_count(model) / 1e6 == pytest.approx(MILLIONS_OF_WEIGHTS[size], abs=5e-4)
    assert model.config.max_position_embeddings == (2048 if size == "7b" else 1024)
    assert model.config.rms_norm_eps == 1e-6
    assert 0 <= model.config.pad_token_id < model.config.vocab_size


def test_there_is_no_shape_without_a_test(root: Path) -> None:
    assert {path.stem for path in (root / "configs").glob("*")} == {f"llama_{size}" for size in MILLIONS_OF_WEIGHTS}


def test_head_size_follows_from_hidden_size_and_heads(root: Path) -> None:
    assert load_llama_config(root / "configs/llama_40m.json").head_dim == 52


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, ["model_type", "'gpt2'", "'llama'"]),
        ({"hidden_size": "wide"}, ["hidden_size", "'wide'", "int"]),
        ({"hidden_size": 34}, ["34", "4", "heads"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0", "from 1 to"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "4"]),
        ({"num_key_value_head": 2}, ["num_key_value_head", "num_key_value_heads"]),
        ({"head_dim": 7}, ["`head_dim`=7", "even"]),
        ({"pad_token_id": -1}, ["pad_token_id is -1", "95"]),
        ({"pad_token_id": 96}, ["pad_token_id is 96", "95"]),
        ({"eos_token_id": 1000}, ["eos_token_id is 1000", "95"]),
        ({"vocab_size": 0}, ["vocab_size is 0"]),
        ({"rope_scaling": {"rope_type": "nonsense", "factor": 2.0}}, ["rope", "nonsense"]),
        ({"hidden_act": "nonsense"}, ["hidden_act", "nonsense", "silu"]),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = write_config(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        build_model(ModelConfig(str(path), dtype="float32"), "cpu", seed=0)
    for word in [str(path), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_not_taken_from_7b(tmp_path: Path, key: str) -> None:
    path = tmp_path / "short.json"
    path.write_text(json.dumps({name: value for name, value in TINY.items() if name != key}))
    with pytest.raises(UsageError, match=f"lacks {key}"):
        load_llama_config(path)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "", "\x00\xff"])
def test_a_file_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"broken\.json"):
        load_llama_config(path)


def test_a_missing_file_suggests_a_near_one(root: Path) -> None:
    with pytest.raises(UsageError, match=r"llama_60m\.json"):
        load_llama_config(root / "configs/llama_60.json")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        load_llama_config(tmp_path)


def test_an_unknown_key_is_said_and_ignored(tmp_path: Path) -> None:
    messages: list[str] = []
    handler = logger.add(messages.append, level="WARNING")
    load_llama_config(write_config(tmp_path, flavour="vanilla"))
    logger.remove(handler)
    assert "flavour" in "".join(messages)


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half"])
def test_fp16_is_refused_with_the_reason(dtype: str) -> None:
    with pytest.raises(UsageError, match="underflow.*--dtype bfloat16"):
        ModelConfig("any.json", dtype=dtype)


def test_contradictory_or_unknown_flags() -> None:
    with pytest.raises(UsageError, match="--dtype int3"):
        ModelConfig("any.json", dtype="int3")
    with pytest.raises(UsageError, match="--compile_model"):
        ModelConfig("any.json", use_hf_model=True, compile_model=True)
