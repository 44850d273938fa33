"""Rows of tokens from documents, and the batches they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_pretraining.data.lanes import Lane
from peft_pretraining.data.tokenization import Encoder


@dataclass(frozen=True)
class Batch:
    """B rows on the CPU. A row of n tokens is scored on its last n - 1, each predicted from those before it.

    input_ids (B, L) int64, padded on the right; lengths (B,) int64, tokens of each row that are no padding, 0 in rows
    that only fill up a batch; bytes (B,) int64, UTF-8 bytes of the text that the scored tokens stand for.
    """

    input_ids: Tensor
    lengths: Tensor
    bytes: Tensor


@dataclass(frozen=True)
class Rows:
    """Rows as they travel between processes: input_ids (N, L), lengths (N,), bytes (N,), all int32."""

    input_ids: Tensor
    lengths: Tensor
    bytes: Tensor

    @classmethod
    def concatenated(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))

    def batches(self, size: int) -> list[Batch]:
        """Batches of `size` rows, in order; the last one may be smaller."""
        columns = (column.long().split(size) for column in vars(self).values())
        return [Batch(*batch) for batch in zip(*columns, strict=True)]


def to_rows(sequences: Iterable[Sequence[int] | np.ndarray], length: int, encoder: Encoder) -> Rows:
    """Pads sequences of at most `length` ids to rows of it."""
    sequences = list(sequences)
    ids = np.full((len(sequences), length), encoder.pad, dtype=np.int32)
    lengths = np.zeros(len(sequences), dtype=np.int32)
    counts = np.zeros(len(sequences), dtype=np.int32)
    for row, sequence in enumerate(sequences):
        lengths[row] = len(sequence)
        ids[row, : len(sequence)] = sequence
        counts[row] = encoder.token_bytes[ids[row, 1 : len(sequence)]].sum()
    return Rows(torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(counts))


class RowMaker:
    """Takes rows of ids from lanes: one document each, cut at `length`, or packed with EOS-joined documents."""

    def __init__(self, encoder: Encoder, length: int, packing: bool) -> None:
        self._encoder, self._length, self._packing = encoder, length, packing
        self._begun: dict[int, list[int]] = {}

    def take(self, lane: Lane, count: int) -> list[list[int]]:
        """The next `count` sequences of a lane, each of 1 to `length` ids."""
        if self._packing:
            return [self._packed(lane) for _ in range(count)]
        taken: list[list[int]] = []
        while len(taken) < count:
            texts = []
            for _ in range(count - len(taken)):
                texts.append(lane.document())
                lane.advance()
            for head in self._encoder.heads(texts, self._length):
                if head:
                    taken.append(head)
                else:
                    lane.count_empty()
        return taken

    def _packed(self, lane: Lane) -> list[int]:
        row: list[int] = []
        while len(row) < self._length:
            ids, start = self._ids(lane), lane.position.token
            part = ids[start : start + self._length - len(row)]
            row += part
            if start + len(part) < len(ids):
                lane.position.token = start + len(part)
                continue
            if not ids:
                lane.count_empty()
            lane.advance()
            del self._begun[lane.number]
        return row

    def _ids(self, lane: Lane) -> list[int]:
        """The ids of the lane's next document, encoded once however many rows it fills."""
        if lane.number not in self._begun:
            self._begun[lane.number] = self._encoder.documents([lane.document()])[0]
        return self._begun[lane.number]
