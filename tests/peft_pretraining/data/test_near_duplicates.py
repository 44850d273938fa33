"""Near copies are found by shared sequences of words, and fall to one side of a split."""

import random

import numpy as np
import pytest

from peft_pretraining.data.near_duplicates import WORDS, SeenTexts, shingles, split_apart


def text(draw: random.Random, words: int) -> list[str]:
    return [f"w{draw.randrange(10**6)}" for _ in range(words)]


def sequences(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))}


def test_shingles_are_equal_where_sequences_of_words_are() -> None:
    draw = random.Random(0)
    common = text(draw, 40)
    one, other = [*text(draw, 9), *common, *text(draw, 70)], [*common[3:], *text(draw, 5)]
    shared = len(sequences(one) & sequences(other))
    assert shared == 25
    found = [set(shingles("  \n".join(words)).tolist()) for words in (one, other)]
    assert len(found[0] & found[1]) == shared
    assert [len(each) for each in found] == [len(sequences(one)), len(sequences(other))]


@pytest.mark.parametrize("words", [0, 1, 12, 13])
def test_short_texts_are_compared_whole(words: int) -> None:
    assert len(shingles(" ".join(text(random.Random(1), words)))) == (words > 0)


def test_no_sequence_is_on_both_sides_of_the_split() -> None:
    draw = random.Random(2)
    texts = [text(draw, 60) for _ in range(2000)]
    boilerplate = text(draw, 20)
    for index in range(0, 2000, 4):  # one great group
        texts[index][10:30] = boilerplate
    for index in range(1, 2000, 40):  # pairs
        texts[index + 1][5:25] = texts[index][30:50]
    chosen = split_apart([" ".join(words) for words in texts], 20)
    assert 90 <= sum(chosen) <= 100
    sides: list[set[tuple[str, ...]]] = [set(), set()]
    for words, side in zip(texts, chosen, strict=True):
        sides[side] |= sequences(words)
    assert not sides[0] & sides[1]
    assert not any(chosen[::4])
    assert any(chosen[index] and chosen[index + 1] for index in range(1, 2000, 40))


def test_a_text_of_which_most_was_seen_is_a_near_copy() -> None:
    draw = random.Random(3)
    seen = SeenTexts()
    first = text(draw, 400)
    assert not seen.is_near_copy(" ".join(first))
    assert seen.is_near_copy(" ".join(first))
    assert seen.is_near_copy(" ".join([*text(draw, 60), *first[:340]]))
    assert not seen.is_near_copy(" ".join([*text(draw, 340), *first[:60]]))


def test_an_empty_list_splits_into_nothing() -> None:
    assert split_apart([], 25) == []
    assert np.array_equal(shingles(""), np.zeros(0, dtype=np.uint64))
