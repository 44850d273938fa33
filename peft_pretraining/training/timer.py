"""How long the parts of an update take, without waiting for the device in between."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """`with clock("forward"): ...` adds up seconds under that name: wall time on CPU, event time on CUDA.

    A part inside another one counts under its own name alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._events: list[tuple[list[str], torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        within = [name, *self._open[-1:]]
        self._open.append(name)
        if self._cuda and name != "data":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((within, first, last))
        else:
            started = time.perf_counter()
            yield
            self._add(within, time.perf_counter() - started)
        self._open.pop()

    def read(self) -> dict[str, float]:
        """Seconds by name so far; waits for the last recorded event."""
        if self._events:
            self._events[-1][2].synchronize()
        for within, first, last in self._events:
            self._add(within, first.elapsed_time(last) / 1000)
        self._events.clear()
        return dict(self._seconds)

    def _add(self, within: list[str], seconds: float) -> None:
        """within: the part, and the one it lies in, if any."""
        self._seconds[within[0]] += seconds
        for outer in within[1:]:
            self._seconds[outer] -= seconds
