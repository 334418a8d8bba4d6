"""The line between parent and child: JSON lines over two pipes, so that stray prints cannot break it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cprbench.schema import canonical_json

#: What a method trains, as the child tells it for counting FLOPs; not part of the record's files.
TRAINS = "trains.json"


class Channel:
    """The child's end. Times are seconds of the monotonic clock, which both processes share."""

    def __init__(self, read_fd: int | None, write_fd: int | None) -> None:
        """Without descriptors it tells nobody and never waits: the end of a process that only helps the first."""
        self._in = None if read_fd is None else os.fdopen(read_fd, "r", encoding="utf-8")
        self._out = None if write_fd is None else os.fdopen(write_fd, "w", encoding="utf-8", buffering=1)
        self._open: str | None = None
        self.seconds: dict[str, float] = {}  # by phase, of the windows closed so far
        self.joules: dict[str, float] = {}  # likewise, where the parent has an energy counter
        self._since = 0.0
        self._counter: float | None = None  # what it stood at when the last window closed
        #: Called at every phase end, on the child's side: waits for the device and returns its allocator's values.
        self.at_end: Callable[[], Mapping[str, float]] = dict
        #: The allocator's values now, sent along with every step.
        self.allocated: Callable[[], Mapping[str, float]] = dict

    def send(self, event: str, **fields: Any) -> None:
        """Tell the parent something."""
        if self._out is not None:
            self._out.write(canonical_json({"event": event, **fields}) + "\n")

    def start(self, phase: str) -> None:
        """Open a phase now."""
        self._open, self._since = phase, time.monotonic()
        self.send("start", phase=phase, t=self._since)

    def end(self) -> None:
        """Close the open phase now and wait until the parent has read its meters; the wait is in no phase."""
        values = self.at_end()  # waits for queued device work, which belongs to the phase
        now = time.monotonic()
        phase, self._open = self._open, None
        if phase is None:
            return
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self.send("end", phase=phase, t=now, values=dict(values))
        before, self._counter = self._counter, self._answer()
        if before is not None and self._counter is not None:
            self.joules[phase] = self.joules.get(phase, 0.0) + self._counter - before

    def adopt(self, phase: str, since: float) -> None:
        """Take over a phase that the parent opened before this process existed."""
        self._open, self._since = phase, since

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Run a phase; one that is open around it is interrupted and goes on afterwards."""
        outer = self._open
        if outer is not None:
            self.end()
        self.start(name)
        try:
            yield
        finally:
            self.end()
            if outer is not None:
                self.start(outer)

    def billed_seconds(self, phases: tuple[str, ...]) -> float:
        """Return the seconds so far in `phases`, the open one included."""
        running = time.monotonic() - self._since if self._open in phases else 0.0
        return running + sum(self.seconds.get(phase, 0.0) for phase in phases)

    def billed_joules(self, phases: tuple[str, ...]) -> float | None:
        """Return the joules so far in `phases`, the open one included; None where no counter tells."""
        self.send("energy")
        now = self._answer()
        if now is None or self._counter is None:
            return None
        running = now - self._counter if self._open in phases else 0.0
        return running + sum(self.joules.get(phase, 0.0) for phase in phases)

    def _answer(self) -> float | None:
        """Return what the parent answers: where its energy counter stands (joules), if it has one."""
        line = "" if self._in is None else self._in.readline().strip()
        return float(line) if line else None


def parse_event(line: str) -> dict[str, Any] | None:
    """Return an event sent by a child; None for a line torn by its death."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
