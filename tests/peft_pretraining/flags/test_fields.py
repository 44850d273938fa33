"""Flags as fields, token counts, and configurations that survive being saved."""

import argparse
import contextlib
import dataclasses
import json
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import TokenCount, flag
from peft_pretraining.training.run_config import RunConfig


def reloaded(content: object, world_size: int = 1) -> RunConfig:
    """What a saved run.json of this content gives."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        return parse_config(["--config", file.name], world_size=world_size)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("100M", 100_000_000),
        ("1.5B", 1_500_000_000),
        ("10_000", 10_000),
        ("2k", 2_000),
        ("1T", 10**12),
        ("4.35K", 4_350),
        ("1.1B", 1_100_000_000),
        (" 7 ", 7),
        (131_072, 131_072),
    ],
)
def test_token_counts_are_read(written: str | int, tokens: int) -> None:
    assert TokenCount(written) == tokens


@pytest.mark.parametrize("written", ["", "M", "1e6", "-5", "1.5", "0.0001K", "1 000", "1.5.2B", "nan", True])
def test_what_is_no_token_count_is_refused(written: str | bool) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        TokenCount(written)


@given(st.integers(0, 10**6), st.sampled_from(["K", "M", "B", "T"]))
def test_suffixes_are_exact(number: int, suffix: str) -> None:
    assert TokenCount(f"{number}{suffix}") == number * 1000 ** ("KMBT".index(suffix) + 1)


@given(st.text(max_size=12))
def test_any_text_is_a_count_or_refused(text: str) -> None:
    with contextlib.suppress(argparse.ArgumentTypeError):
        assert TokenCount(text) >= 0


def test_a_flag_is_a_field_with_help_aliases_and_choices() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        size: int = flag(3, help="in 100% of cases", aliases=("extent", "--span"), choices=(3, 4))

    (field,) = dataclasses.fields(Section)
    assert Section().size == 3
    assert field.metadata["flags"] == ("extent", "span")
    assert field.metadata["choices"] == (3, 4)


def test_a_configuration_survives_json(minimal: list[str]) -> None:
    config = parse_config([*minimal, "--max_train_tokens", "1M", "--scheduler", "linear"], world_size=2)
    assert reloaded(config.to_dict(), world_size=2) == config


def test_a_saved_configuration_shows_what_was_worked_out(minimal: list[str]) -> None:
    config = parse_config(
        [*minimal, "--batch_size", "4", "--total_batch_size", "16", "--max_train_tokens", "1M"], world_size=2
    )
    training = config.to_dict()["training"]
    assert training["gradient_accumulation"] == 2
    assert training["num_training_steps"] == 1_000_000 // (16 * 256)
    assert config.to_dict()["optimizer"]["weight_decay"] is not None


@pytest.mark.parametrize(
    ("saved", "complaint"),
    [
        ({"trainig": {}}, "did you mean training"),
        ({"training": {"batch_sise": 3}}, "did you mean batch_size"),
        ({"training": {"batch_size": "many"}}, "--batch_size many: expected a whole number"),
        ({"training": {"batch_size": {"a": 1}}}, "training.batch_size: a dict"),
        ({"training": [1]}, "is no section"),
        ({"model": {}}, "--optimizer is required"),
    ],
)
def test_a_wrong_saved_configuration_is_refused(saved: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        reloaded(saved)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(["batch_size", "max_train_tokens", "seed", "grad_clipping", "deterministic"])


@given(_JSON | st.fixed_dictionaries({"training": st.dictionaries(_NAMES, _JSON, max_size=3)}))
def test_any_json_is_a_configuration_or_refused(content: object) -> None:
    with pytest.raises(UsageError):  # never complete: no model, no optimizer
        reloaded(content)
