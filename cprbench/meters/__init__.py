"""What a run costs. A meter only takes values; readings are pure functions of the trace they leave.

a Meter gives values at 10 Hz (sample) and at phase edges (edge)          memory.py, …
recorder.py   the thread in the parent process that asks the meters and writes samples.jsonl
trace.py      samples.jsonl -> samples, edges, windows, integrals         replays to the same readings
ledger.py     trace -> readings per phase, seconds, billed gamma
flops.py      executed passes x model sizes -> matrix-multiplication FLOPs, without torch
hardware.py   the hardware class and what the record says about the machine
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: How often a meter is sampled.
SAMPLES_PER_SECOND = 10
#: time.monotonic, time.time, or a test's own (seconds).
Clock = Callable[[], float]


class Meter:
    """A source of values. It never invents one: what it cannot read is left out and named in `missing`."""

    name = "meter"

    def __init__(self, **missing: str) -> None:
        self._missing = missing

    def sample(self) -> dict[str, float]:
        """Return cheap values of this moment, by quantity (about 0.1 ms)."""
        return {}

    def edge(self) -> dict[str, float]:
        """Return the values to keep at a phase edge: counters, peaks since the last edge, slow readings."""
        return self.sample()

    def missing(self) -> dict[str, str]:
        """Return quantity, or sample key of one device, -> why this machine does not measure it."""
        return dict(self._missing)

    def facts(self) -> dict[str, Any]:
        """Return what stays the same over a run and what a reader needs to judge the values."""
        return {}
