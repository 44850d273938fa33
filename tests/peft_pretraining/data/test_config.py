"""Flags of the data that cannot work are refused with the flag's name."""

from typing import Any

import pytest

from peft_pretraining.data import DataConfig
from peft_pretraining.data.config import parse_ranges
from peft_pretraining.errors import UsageError


@pytest.mark.parametrize(
    "flags",
    [
        {"max_length": 1},
        {"workers": -1},
        {"lanes": 0},
        {"shuffle_block": 0},
        {"eval_tokens": 0},
        {"data_seed": -1},
        {"data_timeout": 0.0},
        {"data_timeout": float("nan")},
        {"skip_batches": "7"},
        {"skip_batches": "9-3"},
        {"skip_batches": "0-3"},
        {"dataset": "builtin", "dataset_revision": "v1"},
    ],
)
def test_impossible_values_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{list(flags)[-1]} "):
        DataConfig(**flags)


def test_ranges_of_batches() -> None:
    assert parse_ranges("120-130, 400-400") == ((120, 130), (400, 400))
    assert parse_ranges(None) == ()
