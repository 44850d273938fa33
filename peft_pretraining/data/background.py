"""Runs an iterator in a thread, one item ahead, so that a stalled read becomes an error instead of a hang."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

from peft_pretraining.data.faults import DataError

Item = TypeVar("Item")
_END = object()


class Background(Generic[Item]):
    """Items of `source`, in order. After `timeout` seconds without one, `next` raises DataError with `name`."""

    def __init__(self, source: Iterator[Item], name: str, timeout: float) -> None:
        self._name, self._timeout = name, timeout
        self._items: queue.Queue[object] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        # A daemon: a read that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(source,), name=f"read {name}", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            item = self._items.get(timeout=self._timeout)
        except queue.Empty:
            raise DataError(f"{self._name} gave no data for {self._timeout:g} s (--data_timeout)") from None
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Lets the thread end after the read it is in."""
        self._stopped.set()

    def _run(self, source: Iterator[Item]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
