"""The thread in the parent process that asks the meters and writes samples.jsonl as it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from cprbench.meters import SAMPLES_PER_SECOND, Meter
from cprbench.meters.energy import WALL
from cprbench.meters.trace import Sample
from cprbench.schema import canonical_json


class Recorder:
    """Samples meters at 10 Hz from `start` to `stop`; edges are taken when the child announces them."""

    def __init__(self, path: Path, meters: Sequence[Meter], attempt: int = 1) -> None:
        self._meters = meters
        self._attempt = attempt
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cprbench-meters", daemon=True)
        self._first = True  # the first edge has no end before it that would have read everything
        self.seconds_of_cpu = 0.0  # what metering itself costs

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        missing = {q: why for meter in self._meters for q, why in meter.missing().items()}
        self._write(canonical_json({"missing": missing}))
        self._file.close()

    def edge(
        self, phase: str, side: Literal["start", "end"], t: float, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Write a phase edge at time `t` (monotonic seconds, of the child) with every meter's values; return them."""
        with self._lock:
            taken = dict(values)
            for meter in self._meters:
                # A phase starts right after the last one ended, where peaks and PSS were read and reset.
                taken |= meter.edge() if side == "end" or self._first else meter.sample()
            self._first = False
        self._write(Sample(t, taken, phase, side, self._attempt).line())
        return taken

    def take(self) -> dict[str, float]:
        """Write a sample of every meter and return it."""
        with self._lock:
            values = {WALL: time.time()}
            for meter in self._meters:
                values |= meter.sample()
            self._write(Sample(time.monotonic(), values).line())
        return values

    def sample(self, values: Mapping[str, float]) -> None:
        """Write values that the child took itself, such as its CUDA allocator's."""
        self._write(Sample(time.monotonic(), values).line())

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._done.wait(max(0.0, due - time.monotonic())):
            self.take()
            due = max(due + 1 / SAMPLES_PER_SECOND, time.monotonic())
        self.seconds_of_cpu = time.thread_time()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
