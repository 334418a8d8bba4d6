"""Meters without hardware: one that measures nothing, one that plays a script, one that plays a stored trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cprbench.meters import Clock, Meter
from cprbench.meters.trace import Trace


class NullMeter(Meter):
    """Measures nothing and says why, by quantity."""

    name = "null"


class FakeMeter(NullMeter):
    """Plays values by time: `script` gets the seconds since the meter was made and returns values by sample key."""

    name = "fake"

    def __init__(self, script: Callable[[float], Mapping[str, float]], clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._script, self._clock, self._start = script, clock, clock()

    def sample(self) -> dict[str, float]:
        """Return the script's values of now."""
        return dict(self._script(self._clock() - self._start))


class ReplayMeter(FakeMeter):
    """Plays the values of a stored trace at the pace at which they were taken, and its reasons."""

    name = "replay"

    def __init__(self, trace: Trace, clock: Clock = time.monotonic) -> None:
        taken = sorted((s for s in trace.samples if s.values), key=lambda s: s.t)
        first = taken[0].t if taken else 0.0

        def script(seconds: float) -> Mapping[str, float]:
            past = [s.values for s in taken if s.t - first <= seconds]
            return past[-1] if past else {}

        super().__init__(script, clock)
        self._missing = dict(trace.missing)
