"""Finds texts that share sequences of words, so that near copies are dropped or fall to one side of a split.

A text is compared by its shingles: every sequence of 13 words, as GPT-3's comparison with its benchmarks (Brown et al.
2020, appendix C).
"""

import zlib
from collections.abc import Sequence

import numpy as np

WORDS = 13
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# A filter remembers one shingle in so many: a quarter of a gigabyte of text then fits in some hundred megabytes.
_REMEMBERED = 8


def shingles(text: str) -> np.ndarray:
    """A 64-bit number for every sequence of WORDS words, uint64; a shorter text counts as one sequence."""
    words = text.split()
    codes = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    if len(codes) == 0:
        return codes
    length = max(1, len(codes) - WORDS + 1)
    sums = np.zeros(length, dtype=np.uint64)
    for offset in range(min(WORDS, len(codes))):
        sums = (sums + codes[offset : offset + length] + np.uint64(1)) * _FACTOR
        sums ^= sums >> np.uint64(29)
    return sums


class SeenTexts:
    """Tells whether most of a text occurred in the texts before it."""

    def __init__(self, share: float = 0.5) -> None:
        self._share, self._seen = share, set[int]()

    def is_near_copy(self, text: str) -> bool:
        """Whether more than `share` of its shingles were seen; those of a text that is none are remembered."""
        found = shingles(text)
        # By value, so that the same sequences are remembered and asked for.
        chosen = found[found % np.uint64(_REMEMBERED) == 0].tolist()
        known = sum(shingle in self._seen for shingle in chosen)
        if chosen and known > self._share * len(chosen):
            return True
        self._seen.update(chosen)
        return False


def split_apart(texts: Sequence[str], one_in: int) -> list[bool]:
    """Chooses about one text in `one_in`, of which no shingle occurs in a text that is not chosen.

    Texts that share a shingle form a group and stay together. Groups that make up more than a hundredth of the wanted
    part (texts with the same boilerplate) are not chosen; of the others the first in the order of `texts`, which must
    not put likes together.
    """
    group = _groups(texts)
    sizes = np.bincount(group, minlength=len(texts))
    wanted = len(texts) // one_in
    largest = max(2, wanted // 100)
    chosen = np.zeros(len(texts), dtype=bool)
    count = 0
    for first in np.unique(group, return_index=True)[1]:
        if sizes[group[first]] <= largest and count < wanted:
            chosen[group[first]] = True
            count += int(sizes[group[first]])
    return [bool(chosen[number]) for number in group]


def _groups(texts: Sequence[str]) -> np.ndarray:
    """The number of the first text of each text's group."""
    found = [np.unique(shingles(text)) for text in texts]
    owner = np.repeat(np.arange(len(texts), dtype=np.int64), [len(each) for each in found])
    codes = np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    pairs = np.unique(np.stack([owner[order][:-1][same], owner[order][1:][same]], axis=1), axis=0)
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(index) for index in range(len(texts))], dtype=np.int64)
