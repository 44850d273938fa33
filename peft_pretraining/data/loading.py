"""Worker processes that fill the updates of one rank."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.documents import DocumentParser
from peft_pretraining.data.faults import DataError
from peft_pretraining.data.lanes import Lane
from peft_pretraining.data.plan import Plan
from peft_pretraining.data.rows import RowMaker, Rows, to_rows
from peft_pretraining.data.tokenization import Encoder
from peft_pretraining.errors import UsageError


@dataclass(frozen=True)
class Parcel:
    """What one worker adds to an update: rows of its lanes in order, where they are now, what they skipped.

    Errors travel as text, so that they read the same with workers and without.
    """

    rows: Rows | None = None
    cursors: dict[int, dict[str, Any]] | None = None
    skipped: dict[int, dict[str, Any]] | None = None
    error: tuple[type[Exception], str] | None = None


class LaneRows(IterableDataset[Parcel]):
    """An endless stream of parcels, `rows_per_lane` rows of each of this worker's part of `lanes` in each."""

    def __init__(
        self,
        plan: Plan,
        lanes: range,
        rows_per_lane: int,
        encoder: Encoder,
        config: DataConfig,
        cursors: dict[int, dict[str, Any]],
    ) -> None:
        super().__init__()
        self._plan, self._lanes, self._rows_per_lane = plan, lanes, rows_per_lane
        self._encoder, self._config, self._cursors = encoder, config, cursors

    def __iter__(self) -> Iterator[Parcel]:
        try:
            yield from self._parcels()
        except (UsageError, DataError) as error:
            yield Parcel(error=(type(error), str(error)))

    def _parcels(self) -> Iterator[Parcel]:
        lanes = self._open_lanes()
        maker = RowMaker(self._encoder, self._config.max_length, self._config.packing)
        try:
            while True:
                sequences = [ids for lane in lanes for ids in maker.take(lane, self._rows_per_lane)]
                yield Parcel(
                    to_rows(sequences, self._config.max_length, self._encoder),
                    {lane.number: lane.position.to_dict() for lane in lanes},
                    {lane.number: lane.skipped.to_dict() for lane in lanes},
                )
        finally:
            for lane in lanes:
                lane.close()

    def _open_lanes(self) -> list[Lane]:
        from peft_pretraining.data.records import Reader

        info = get_worker_info()
        part, parts = (0, 1) if info is None else (info.id, info.num_workers)
        first, last = (len(self._lanes) * edge // parts for edge in (part, part + 1))
        reader = Reader.of(self._config, self._plan.corpus.filesystem, self._encoder)
        parser = DocumentParser(self._config.text_column, self._config.strict_data)
        lanes = [
            Lane(self._plan, number, reader, parser, self._cursors.get(number)) for number in self._lanes[first:last]
        ]
        for lane in lanes:
            lane.prepare()
        return lanes


def load_parcels(dataset: LaneRows, workers: int) -> Iterator[Parcel]:
    """Parcels of `workers` processes in turn (of this process for 0), two updates ahead."""
    loader: DataLoader[Parcel] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        # Otherwise the loader draws from the global random numbers, and a resumed run would draw others.
        generator=torch.Generator(),
        # Forked workers start at once; they never touch a device.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    return iter(loader)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    # Signals of a preemption reach the whole process group; the rank needs its data to finish the update.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_second)


def _end_at_second(number: int, _: Any) -> None:
    """The first one may be a preemption's; a rank that ends while a worker hangs sends a second."""
    signal.signal(number, signal.SIG_DFL)
