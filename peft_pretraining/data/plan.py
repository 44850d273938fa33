"""Who reads what: the division of the shards among the lanes, anew for every pass.

A pass sees every document once, whatever the number of lanes and however uneven the shards: every lane reads its own
records of every large shard (a stripe, every n-th record), and small shards are dealt out whole so that the lanes get
equal parts. Only where all shards are parts of one data set and equal in size, as C4's, are they all dealt out whole:
then nothing is read twice.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from peft_pretraining.data.holdout import Document
from peft_pretraining.data.lines import LONGEST_TEXT
from peft_pretraining.data.shards import Corpus, Shard, are_parts_of_one

# Shards are called equal where their differences leave the lanes within this share of each other.
_UNEVEN = 0.01
# A shard of less than this share of a lane's part is dealt out whole: all of them still come out even.
_SMALL = 1 / 400


class Piece(NamedTuple):
    """The records of a shard whose number modulo `stripes` is `stripe`."""

    shard: int
    stripe: int = 0
    stripes: int = 1


@dataclass(frozen=True)
class Plan:
    """What all lanes share. `block`: documents shuffled at a time.

    whole_texts: a txt file is one document. packed: rows are filled, so that equal parts are equal in bytes rather
    than in documents.
    """

    corpus: Corpus
    lanes: int
    seed: int
    block: int
    whole_texts: bool = True
    packed: bool = False
    _deals: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def dealt_whole(self) -> bool:
        """Whether every shard is read by one lane alone."""
        shards = self.corpus.train
        if len(shards) < self.lanes or self.lanes == 1:
            return self.lanes == 1
        if shards[0].remote:  # a shard of the hub is read by one lane, for its price
            return True
        sizes = np.array([shard.size for shard in shards], dtype=float)
        uneven = sizes.std() / sizes.mean() * (self.lanes / len(shards)) ** 0.5
        return len(shards) % self.lanes == 0 and uneven <= _UNEVEN and are_parts_of_one(shards)

    def pieces(self, lane: int, epoch: int) -> list[Piece]:
        """What a lane reads in an epoch, in order; over all lanes every record is in one piece."""
        if self.dealt_whole:
            return [Piece(int(shard)) for shard in self._order(epoch)[lane :: self.lanes]]
        order, owner = self._deal(epoch)
        rank = np.argsort(order)
        # Lanes go through the shards in orders of their own, so that an update mixes many of them.
        own = np.random.default_rng([self.seed, epoch, lane]).permutation(len(order))
        return [
            Piece(int(shard))
            if owner[shard] == lane
            else Piece(int(shard), (lane + int(rank[shard]) + epoch) % self.lanes, self.lanes)
            for shard in own
            if owner[shard] in (lane, -1)
        ]

    def shuffle(self, documents: Sequence[Document], epoch: int, piece: Piece, row: int) -> list[Document]:
        """A block of documents in its order of this epoch."""
        key = [self.seed, epoch, piece.shard, piece.stripe, row]
        return [documents[index] for index in np.random.default_rng(key).permutation(len(documents))]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.corpus.train))

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(an order of the shards, the lane that reads each of them whole or -1 where all lanes read it)."""
        if epoch not in self._deals:
            order = self._order(epoch)
            shards = self.corpus.train
            owner = np.full(len(shards), -1)
            small = sum(shard.size for shard in shards) / self.lanes * _SMALL
            texts = [index for index in order if self._is_one_document(shards[index])]
            weights = [shards[index].size if self.packed else 1 for index in texts]
            self._spread(texts, weights, epoch, owner)
            rest = [i for i in order if shards[i].size <= small and not self._is_one_document(shards[i])]
            self._spread(rest, [shards[index].size for index in rest], epoch, owner)
            self._deals.clear()
            self._deals[epoch] = order, owner
        return self._deals[epoch]

    def _is_one_document(self, shard: Shard) -> bool:
        return self.whole_texts and shard.kind == "text" and shard.compression is None and shard.size <= LONGEST_TEXT

    def _spread(self, shards: Iterable[int], weights: Iterable[float], epoch: int, owner: np.ndarray) -> None:
        """Gives each shard to the lane that has least so far; the first lane is another one in every epoch."""
        loads = [(0.0, place) for place in range(self.lanes)]
        for shard, weight in zip(shards, weights, strict=True):
            load, place = loads[0]
            heapq.heapreplace(loads, (load + weight, place))
            owner[shard] = (place + epoch) % self.lanes
