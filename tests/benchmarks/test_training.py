"""The training benchmark's batches and loops, on a model small enough for a test."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.common import interleaved, median_ratio, peak_memory_mib, reset_peak_memory, stamp
from benchmarks.training_loops import LENGTH, LOOPS, ROWS, c4_batches
from tests.peft_pretraining.tiny import write_config


def test_batches_are_padded_like_c4() -> None:
    batches = c4_batches(50, vocab_size=96)
    share = sum(int(lengths.sum()) for _, lengths in batches) / (50 * ROWS * LENGTH)
    assert share == pytest.approx(0.79, abs=0.03)
    assert all((ids != 0).sum() == lengths.sum() for ids, lengths in batches)
    packed = c4_batches(1, vocab_size=96, packed=True)
    assert (packed[0][1] == LENGTH).all()


@pytest.mark.parametrize("name", ["plain", "trainer", "harness_eager"])
def test_a_loop_trains_and_says_how_long_it_took(tmp_path: Path, name: str) -> None:
    loop = LOOPS[name](write_config(tmp_path, max_position_embeddings=LENGTH), time.perf_counter)
    assert loop(c4_batches(1, vocab_size=96)) > 0


def test_paired_ratios_cancel_what_slows_both() -> None:
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    assert interleaved({"a": lambda: None, "b": lambda: None}, 3).keys() == {"a", "b"}


def test_peak_memory_sees_what_is_freed_again() -> None:
    reset_peak_memory()
    before = peak_memory_mib()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert peak_memory_mib() - before > 60


def test_the_stamp_says_what_was_measured_where() -> None:
    content = json.loads(json.dumps(stamp()))
    assert len(content["commit"]) == 40
    assert content["versions"]["torch"]
    assert content["cores"] >= 1
