"""Runs an iterator in a thread, one item ahead, so that a stalled read becomes an error instead of a hang."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from peft_pretraining.data.faults import DataError

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Items of `source`, in order. After `timeout` seconds without one, `next` raises DataError with `name`."""

    def __init__(self, source: Iterator[Item], name: str, timeout: float) -> None:
        self._name, self._timeout = name, timeout
        self._items: queue.Queue[Any] = queue.Queue(maxsize=1)
        stopped = threading.Event()
        # A daemon: a read that never returns must not keep the process from ending.
        thread = threading.Thread(target=_run, args=(source, self._items, stopped), name=f"read {name}", daemon=True)
        # Also at exit: a thread that is in native code while the interpreter goes down can abort the process.
        self._finalizer = weakref.finalize(self, _stop, self._items, stopped, thread)
        thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            item, error = self._items.get(timeout=self._timeout)
        except queue.Empty:
            raise DataError(f"{self._name} gave no data for {self._timeout:g} s (--data_timeout)") from None
        if error is not None:
            raise error
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the thread, after the read it is in."""
        self._finalizer()


def _run(source: Iterator[Any], items: "queue.Queue[Any]", stopped: threading.Event) -> None:
    try:
        for item in source:
            items.put((item, None))
            if stopped.is_set():
                return
        items.put((None, StopIteration()))
    except BaseException as error:
        items.put((None, error))


def _stop(items: "queue.Queue[Any]", stopped: threading.Event, thread: threading.Thread) -> None:
    stopped.set()
    with contextlib.suppress(queue.Empty):  # the thread may be waiting for room
        items.get_nowait()
    thread.join(timeout=0.5)
