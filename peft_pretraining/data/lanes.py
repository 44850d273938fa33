"""The order of the data: independent streams that make the same documents whoever reads them.

A run has a fixed number of lanes. Each is a deterministic stream over its own share of the shards, and every
update takes the same number of rows from every lane. Processes and workers only decide who reads a lane, so a run
resumes on another number of them from the lanes' cursors: plain positions, no buffers and no random state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft_pretraining.data.background import Background
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import EMPTY, DataError, Skipped
from peft_pretraining.data.holdout import Document
from peft_pretraining.data.lines import Record
from peft_pretraining.data.plan import Piece, Plan
from peft_pretraining.data.shards import Shard
from peft_pretraining.errors import UsageError

if TYPE_CHECKING:  # it imports `datasets`, which takes a second and only the readers need
    from peft_pretraining.data.records import Reader

_USUAL_LANES = 16


def choose_lanes(wanted: int | None, global_batch: int, world_size: int) -> int:
    """The number of lanes: `wanted`, or about 16. It divides an update's sequences, and the processes divide it.

    Of the possible numbers the one with most divisors is taken, even ones first: it allows most numbers of
    processes on resume. Raises UsageError.
    """
    possible = [n for n in range(world_size, global_batch + 1, world_size) if global_batch % n == 0]
    if not possible:
        raise UsageError(f"--total_batch_size {global_batch} is no multiple of the {world_size} processes")
    if wanted is not None:
        if wanted not in possible:
            raise UsageError(
                f"--lanes {wanted} must divide --total_batch_size {global_batch} and be a multiple of the "
                f"{world_size} processes: one of {', '.join(map(str, possible))}"
            )
        return wanted
    usual = [n for n in possible if n <= max(_USUAL_LANES, 2 * world_size)]
    return max(usual or possible[:1], key=lambda n: (sum(n % d == 0 for d in range(1, n + 1)), n & -n, n))


@dataclass
class Position:
    """Where a lane is: in the block that starts at record `row` of piece `piece`.

    `taken` of its documents are used up, and `token` tokens of the next one. `skipped`: the faults before it.
    """

    epoch: int = 0
    piece: int = 0
    row: int = 0
    taken: int = 0
    token: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "skipped": self.skipped.to_dict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Position":
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        numbers = {name: saved[name] for name in ("epoch", "piece", "row", "taken", "token")}
        if not all(isinstance(value, int) and value >= 0 for value in numbers.values()):
            raise ValueError(f"no position: {numbers}")
        return cls(**numbers, skipped=Skipped.from_dict(saved["skipped"]))


class Lane:
    """One stream of documents, endless, from a position on. `position` is that of the next document."""

    def __init__(
        self, plan: Plan, number: int, reader: "Reader", parser: DocumentParser, cursor: dict[str, Any] | None
    ) -> None:
        self._plan, self.number, self._reader, self._parser = plan, number, reader, parser
        self.position = Position() if cursor is None else Position.from_dict(cursor)
        self.skipped = self.position.skipped.copy()
        self._block: list[Document] = []
        self._records: Iterator[Record] | None = None
        self._source: Background[list[Record]] | None = None
        self._next_row = 0
        self._order: tuple[int, list[Piece]] = (-1, [])

    def document(self) -> Document:
        """The next document, which stays the next one until `advance`."""
        if not self._block:
            self._fill()
        return self._block[self.position.taken]

    def advance(self) -> None:
        """Goes on to the document after the next one."""
        self.position.taken += 1
        self.position.token = 0
        if self.position.taken == len(self._block):
            self._block = []
            self._move(self.position.piece, self._next_row)

    def count_empty(self) -> None:
        """Counts a document that turned out to hold no token, wherever in the block it was."""
        self.skipped.documents[EMPTY] += 1
        self.position.skipped.documents[EMPTY] += 1

    def prepare(self) -> None:
        """Starts reading without waiting for it."""
        if self._records is None and self.position.piece < len(self._pieces()):
            self._open()

    def close(self) -> None:
        """Lets the reading thread end."""
        if self._source is not None:
            self._source.close()

    def _move(self, piece: int, row: int) -> None:
        self.position.piece, self.position.row = piece, row
        self.position.taken = self.position.token = 0
        self.position.skipped = self.skipped.copy()

    def _fill(self) -> None:
        """Reads the block at the position, or the first one after it that is not empty."""
        taken, token = self.position.taken, self.position.token
        whole_passes = 0
        while not (documents := self._read_block()):
            self._records = None
            self._move(self.position.piece + 1, 0)
            if self.position.piece >= len(self._pieces()):
                if whole_passes == 1:
                    self._check_for_documents()
                whole_passes += 1
                self.position.epoch += 1
                self._move(0, 0)
            taken = token = 0
        piece = self._pieces()[self.position.piece]
        self._block = self._plan.shuffle(documents, self.position.epoch, piece, self.position.row)
        self.position.taken, self.position.token = taken, token

    def _check_for_documents(self) -> None:
        """After a barren pass: raises UsageError if there is no document for any lane; else this one's turn comes."""
        skipped = Skipped()
        for shard in self._plan.corpus.train:
            source = Background(self._reader.records(shard), shard.name, self._reader.timeout)
            try:
                if any(self._text(shard, record, skipped) is not None for record in _flatten(source, shard)):
                    return
            finally:
                source.close()
        found = ", ".join(f"{count} {reason}" for reason, count in skipped.documents.items())
        raise UsageError(
            f"--dataset: no document to train on{f' (passed over: {found})' if found else ''}: give more data, "
            "another --text_column, or a larger --holdout"
        )

    def _text(self, shard: Shard, record: Record, skipped: Skipped) -> Document | None:
        text = self._parser.text(shard, record, skipped)
        return text if text is not None and self._plan.corpus.trains_on(text) else None

    def _read_block(self) -> list[Document]:
        """Up to a block's number of documents from the position on; none at the end of the piece."""
        if self.position.piece >= len(self._pieces()):
            return []
        self.prepare()
        shard = self._shard()
        documents: list[Document] = []
        assert self._records is not None
        for record in self._records:
            self._next_row = record.row + 1
            text = self._text(shard, record, self.skipped)
            if text is not None:
                documents.append(text)
                if len(documents) == self._plan.block:
                    break
        return documents

    def _pieces(self) -> list[Piece]:
        if self._order[0] != self.position.epoch:
            self._order = (self.position.epoch, self._plan.pieces(self.number, self.position.epoch))
        return self._order[1]

    def _shard(self) -> Shard:
        return self._plan.corpus.train[self._pieces()[self.position.piece].shard]

    def _open(self) -> None:
        self.close()
        piece = self._pieces()[self.position.piece]
        shard = self._plan.corpus.train[piece.shard]
        batches = self._reader.records(shard, self.position.row, piece.stripe, piece.stripes)
        self._source = Background(batches, shard.name, self._reader.timeout)
        self._records = _flatten(self._source, shard)


def _flatten(batches: Iterator[list[Record]], shard: Shard) -> Iterator[Record]:
    try:
        for batch in batches:
            yield from batch
    except (DataError, UsageError):
        raise
    except Exception as error:
        raise DataError(f"{shard.path} cannot be read: {type(error).__name__}: {error}") from error
