"""Meters without hardware: one that measures nothing, one that plays a script, one that plays a stored trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cprbench.meters.trace import Trace


class NullMeter:
    """Measures nothing and says why, by quantity."""

    name = "null"

    def __init__(self, **why: str) -> None:
        self._why = why

    def sample(self) -> dict[str, float]:
        """Return no value."""
        return {}

    def edge(self) -> dict[str, float]:
        """Return no value."""
        return {}

    def missing(self) -> dict[str, str]:
        """Return the reasons given."""
        return self._why

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class FakeMeter(NullMeter):
    """Plays values by time: `script` gets the seconds since the meter was made and returns values by sample key."""

    name = "fake"

    def __init__(
        self, script: Callable[[float], Mapping[str, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._script = script
        self._clock = clock
        self._start = clock()

    def sample(self) -> dict[str, float]:
        """Return the script's values of now."""
        return dict(self._script(self._clock() - self._start))

    def edge(self) -> dict[str, float]:
        """Return the same as a sample."""
        return self.sample()


class ReplayMeter(FakeMeter):
    """Plays the values of a stored trace at the pace at which they were taken, and its reasons."""

    name = "replay"

    def __init__(self, trace: Trace, clock: Callable[[], float] = time.monotonic) -> None:
        taken = sorted((s for s in trace.samples if s.values), key=lambda s: s.t)
        first = taken[0].t if taken else 0.0

        def script(seconds: float) -> Mapping[str, float]:
            past = [s.values for s in taken if s.t - first <= seconds]
            return past[-1] if past else {}

        super().__init__(script, clock)
        self._why = dict(trace.missing)
