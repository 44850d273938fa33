"""A rank's part of the training data: an update's rows at a time, and a position that any number of ranks resumes."""

import atexit
import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from peft_pretraining.data.config import DataConfig, parse_ranges
from peft_pretraining.data.evaluation_set import EvaluationSet
from peft_pretraining.data.faults import Skipped
from peft_pretraining.data.lanes import Position, choose_lanes
from peft_pretraining.data.loading import LaneRows, Parcel, load_parcels
from peft_pretraining.data.plan import Plan
from peft_pretraining.data.rows import Batch, Rows
from peft_pretraining.data.shards import Corpus
from peft_pretraining.data.tokenization import Encoder
from peft_pretraining.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STATE_VERSION = 2
# Positions of format 1 mean the same where every shard is read by one lane alone, as the hub's.
_WHOLE_SHARDS_VERSION = 1


@dataclass(frozen=True)
class Share:
    """The part of every update that falls to a rank: sequences of a micro-batch, of the update over all ranks."""

    batch_size: int
    global_batch: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_batch % (self.batch_size * self.world_size):
            raise UsageError(
                f"--total_batch_size {self.global_batch} is no multiple of --batch_size {self.batch_size} "
                f"x {self.world_size} processes"
            )

    def lanes(self, lanes: int) -> range:
        """The lanes of the rank. Neighbours, so that one process and several cut the same micro-batches."""
        each = lanes // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


@dataclass(frozen=True)
class Update:
    """The data of one update on this rank. `number` counts updates' worth of data from 1, skipped ones included."""

    number: int
    micro_batches: list[Batch]


class TrainingData:
    """Endless updates of one rank.

    `state_dict` is the position after the last update that was returned, whatever workers have prepared beyond it.
    """

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        tokenizer: "PreTrainedTokenizerFast",
        encoder: Encoder,
        share: Share,
        order: Mapping[str, Any],
        workers: int,
    ) -> None:
        self.tokenizer = tokenizer
        self._config, self._corpus, self._encoder, self._share = config, corpus, encoder, share
        self._order, self._workers = dict(order), workers
        self._lanes = choose_lanes(config.lanes, share.global_batch, share.world_size)
        self._check_workers()
        self._skip = parse_ranges(config.skip_batches)
        self._evaluation = EvaluationSet(config, corpus, encoder, self._order)
        self._drawn = 0
        self._cursors: dict[int, dict[str, Any]] = {}
        self._skipped: dict[int, Skipped] = {}
        self._reported: set[str] = set()
        self._parcels: Iterator[Parcel] | None = None
        self._ahead: list[Parcel] = []
        # Before multiprocessing ends its children with the one signal that workers ignore.
        atexit.register(_close, weakref.ref(self))

    @property
    def lanes(self) -> int:
        """The number of streams the data is split into."""
        return self._lanes

    @property
    def counters(self) -> dict[str, int]:
        """Documents that this rank's lanes passed over, by reason, and the shards they found damaged."""
        total = Skipped()
        for skipped in self._skipped.values():
            total.add(skipped)
        found = {f"skipped documents, {reason}": n for reason, n in sorted(total.documents.items())}
        return {**found, "damaged shards": len(total.shards)} if total.shards else found

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        """Raises UsageError (--strict_data, no documents) and DataError (a shard that cannot be read)."""
        while True:
            update = self._draw()
            if not any(first <= update.number <= last for first, last in self._skip):
                return update
            logger.info("--skip_batches: data of update {} is passed over", update.number)

    def prepare(self) -> None:
        """Makes the validation set and reads the data of the next update, so that what fails fails before training.

        Rank 0 logs what the data is. The position stays. Raises UsageError and DataError.
        """
        self._evaluation.load()
        self._ahead = self._ahead or self._read()
        if self._share.rank == 0:
            from peft_pretraining.data.survey import survey

            found = survey(self._config, self._corpus, self._encoder)
            if found is not None:
                found.report(self._config)
            else:
                self._report_first_rows()

    def _report_first_rows(self) -> None:
        """What is known of a streamed corpus without downloading it."""
        lengths = [length for parcel in self._ahead if parcel.rows for length in parcel.rows.lengths.tolist()]
        padding = 1 - sum(lengths) / (len(lengths) * self._config.max_length)
        logger.info(
            "{}: {:,} files, streamed; the first {:,} rows of {} tokens: {:.0%} padding",
            self._config.dataset,
            len(self._corpus.train),
            len(lengths),
            self._config.max_length,
            padding,
        )

    def _read(self) -> list[Parcel]:
        if self._parcels is None:
            self._parcels = self._start()
        parcels = [next(self._parcels) for _ in range(max(1, self._workers))]
        for parcel in parcels:
            if parcel.error is not None:
                kind, message = parcel.error
                self.close()
                raise kind(message)
        return parcels

    def _draw(self) -> Update:
        parcels, self._ahead = self._ahead or self._read(), []
        self._drawn += 1
        for parcel in parcels:
            self._note(parcel)
        rows = Rows.concatenated([parcel.rows for parcel in parcels if parcel.rows is not None])
        return Update(self._drawn, rows.batches(self._share.batch_size))

    def _note(self, parcel: Parcel) -> None:
        for lane, cursor in (parcel.cursors or {}).items():
            old = self._cursors.get(lane)
            if cursor["epoch"] > (old["epoch"] if old else 0) and cursor["epoch"] > self._epoch():
                logger.info("the documents come round again: pass {} begins", cursor["epoch"] + 1)
            self._cursors[lane] = cursor
        for lane, skipped in (parcel.skipped or {}).items():
            self._skipped[lane] = Skipped.from_dict(skipped)
            for reason in self._skipped[lane].documents.keys() - self._reported:
                logger.warning("documents are skipped and counted: {}", reason)
                self._reported.add(reason)

    def _epoch(self) -> int:
        return max((cursor["epoch"] for cursor in self._cursors.values()), default=0)

    def _plan(self, lanes: int) -> Plan:
        config = self._config
        seed, whole_texts = int(self._order["data_seed"]), config.txt_documents == "file"
        return Plan(self._corpus, lanes, seed, config.shuffle_block, whole_texts, config.packing)

    def _start(self) -> Iterator[Parcel]:
        plan = self._plan(self._lanes)
        rows_per_lane = self._share.global_batch // self._lanes
        lanes = self._share.lanes(self._lanes)
        dataset = LaneRows(plan, lanes, rows_per_lane, self._encoder, self._config, self._cursors)
        return load_parcels(dataset, self._workers)

    def _check_workers(self) -> None:
        lanes = len(self._share.lanes(self._lanes))
        if self._workers <= lanes:
            return
        if self._config.workers is not None:
            raise UsageError(
                f"--workers {self._config.workers}: each of {self._share.world_size} processes has {lanes} of "
                f"{self._lanes} lanes to read; give at most {lanes}, or more --lanes"
            )
        logger.info("{} data workers instead of {}: one for each lane of a process", lanes, self._workers)
        self._workers = lanes

    def close(self) -> None:
        """Ends the workers. The next update starts them again at the same position."""
        self._ahead = []
        parcels, self._parcels = self._parcels, None
        if parcels is not None and hasattr(parcels, "_shutdown_workers"):
            parcels._shutdown_workers()

    def state_dict(self) -> dict[str, Any]:
        """This rank's position, JSON-able. Those of all ranks, merged by `merge_states`, can be loaded."""
        return copy.deepcopy(
            {
                "version": _STATE_VERSION,
                "lanes": self._lanes,
                "drawn": self._drawn,
                "order": self._order,
                "cursors": {str(lane): cursor for lane, cursor in self._cursors.items()},
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a merged position. Raises UsageError if this run's data or order is another."""
        check_order(state, self._order, self._readable(state))
        try:
            lanes, drawn, cursors = int(state["lanes"]), int(state["drawn"]), state["cursors"]
            found = {int(lane): Position.from_dict(cursor) for lane, cursor in cursors.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"--continue_from: its data position is damaged ({error})") from error
        share = self._share
        if self._config.lanes not in (None, lanes):
            raise UsageError(f"--lanes {self._config.lanes}: the run to continue has {lanes}: leave it out")
        if lanes < 1 or lanes % share.world_size or share.global_batch % lanes:
            raise UsageError(
                f"--continue_from: its data has {lanes} lanes, which {share.world_size} processes must divide and "
                f"which must divide --total_batch_size {share.global_batch}"
            )
        self.close()
        self._lanes, self._drawn = lanes, drawn
        self._check_workers()
        self._cursors = {lane: found[lane].to_dict() for lane in share.lanes(lanes) if lane in found}
        self._skipped = {lane: found[lane].skipped for lane in self._cursors}

    def _readable(self, state: Mapping[str, Any]) -> tuple[int, ...]:
        """The formats of positions that mean the same to this version."""
        lanes = state.get("lanes")
        shards = self._corpus.train
        if isinstance(lanes, int) and lanes > 0 and self._plan(lanes).dealt_whole and shards[0].kind != "text":
            return _WHOLE_SHARDS_VERSION, _STATE_VERSION
        return (_STATE_VERSION,)

    def evaluation_batches(self, batch_size: int) -> Iterator[Batch]:
        """This rank's part of the validation set; every rank gets the same number of batches, of the same sizes.

        Rows that only make the parts equal have length 0. Raises UsageError if there are no validation documents.
        """
        return self._evaluation.batches(batch_size, self._share.rank, self._share.world_size)


def _close(data: "weakref.ref[TrainingData]") -> None:
    alive = data()
    if alive is not None:
        alive.close()


def check_order(state: Mapping[str, Any], order: Mapping[str, Any], versions: Sequence[int]) -> None:
    """Raises UsageError, naming the flag, where a saved position means nothing in this run's order of the data."""
    version = state.get("version")
    if version not in versions:
        raise UsageError(
            f"--continue_from: its data position has format {version}, this version reads {versions[-1]}: documents "
            "come in another order since; finish the run with the version that began it, or start anew"
        )
    saved_order = state.get("order")
    for name, value in order.items():
        saved = saved_order.get(name) if isinstance(saved_order, Mapping) else None
        if saved != value:
            raise UsageError(
                f"--continue_from: the run was started with another {name} ({saved}, now {value}), "
                "so its data cannot go on exactly; use what it was started with, or start anew"
            )


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One position from the `state_dict` of every rank. Raises ValueError if they are not of one update."""
    first = states[0]
    if any({**state, "cursors": None} != {**first, "cursors": None} for state in states):
        raise ValueError("the data positions are not those of one update of one run")
    cursors = {lane: cursor for state in states for lane, cursor in state["cursors"].items()}
    return {**first, "cursors": cursors}
