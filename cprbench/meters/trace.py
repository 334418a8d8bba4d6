"""samples.jsonl and what can be computed from it: windows, integrals, differences. Pure and torch-free.

Lines, in order of time (t: seconds on the machine's monotonic clock):
    {"missing": {"gpu_energy_joules": "no NVML device"}}                       what is not measured, and why
    {"t": 1.2, "values": {"rss_bytes": 1e9}}                                   a sample
    {"t": 1.3, "edge": "start", "phase": "train", "attempt": 1, "values": {…}} a phase edge with its readings
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from cprbench.errors import StoreError
from cprbench.schema import canonical_json

#: (t, value)
Point = tuple[float, float]
time_of = itemgetter(0)


@dataclass(frozen=True)
class Sample:
    """Values of one moment; an edge carries its phase and side as well."""

    t: float
    values: Mapping[str, float]
    phase: str | None = None
    edge: Literal["start", "end"] | None = None
    attempt: int = 1

    def line(self) -> str:
        """Return the line of samples.jsonl."""
        data: dict[str, Any] = {"t": round(self.t, 6), "values": dict(self.values)}
        if self.edge is not None:
            data |= {"edge": self.edge, "phase": self.phase, "attempt": self.attempt}
        return canonical_json(data)


@dataclass(frozen=True)
class Window:
    """One uninterrupted stretch of a phase. `cut`: the process died in it, so its end is the last sample."""

    phase: str
    attempt: int
    start: Sample
    end: Sample
    cut: bool = False

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.end.t - self.start.t


@dataclass(frozen=True)
class Trace:
    """Everything the meters of a run left behind."""

    samples: Sequence[Sample]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Return the trace in a samples.jsonl file. A torn last line is left out; others raise StoreError."""
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return cls.parse(lines, str(path))

    @classmethod
    def parse(cls, lines: Sequence[str], where: str) -> Trace:
        """Return the trace in the lines of a samples.jsonl file."""
        samples: list[Sample] = []
        missing: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            try:
                _take(json.loads(line, parse_constant=_refuse), samples, missing)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines):
                    break  # written while the process was killed
                raise StoreError(f"{where}: line {number} is not a sample ({error}).") from None
        return cls(samples, missing)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Trace:
        """Return the trace in decoded lines. Raises ValueError, KeyError, TypeError or AttributeError for others."""
        samples: list[Sample] = []
        missing: dict[str, str] = {}
        for row in rows:
            _take(row, samples, missing)
        return cls(samples, missing)

    def as_attempt(self, attempt: int) -> Trace:
        """Return the same trace under another attempt's number."""
        return Trace([replace(s, attempt=attempt) for s in self.samples], self.missing)

    def between(self, start: float, end: float) -> Trace:
        """Return the trace with those windows alone that lie between two times; all samples stay."""
        inside = {
            id(edge) for w in self.windows() if start <= w.start.t and w.end.t <= end for edge in (w.start, w.end)
        }
        return Trace([s if id(s) in inside else replace(s, edge=None, phase=None) for s in self.samples], self.missing)

    def windows(self) -> list[Window]:
        """Return the phases' windows in order. Raises StoreError when time runs backwards."""
        found: list[Window] = []
        start: Sample | None = None
        for sample in self.samples:
            if sample.edge == "start":
                if start is not None:
                    found.append(self._cut(start, sample))
                start = sample
            elif sample.edge == "end" and start is not None:
                if sample.t < start.t:
                    raise StoreError(f"phase {start.phase}: ends {start.t - sample.t:.6f} s before it starts.")
                found.append(Window(str(start.phase), start.attempt, start, sample))
                start = None
        if start is not None:
            found.append(self._cut(start, None))
        return found

    def _cut(self, start: Sample, before: Sample | None) -> Window:
        limit = math.inf if before is None else before.t
        last = max((s for s in self.samples if start.t <= s.t < limit), key=lambda s: s.t, default=start)
        return Window(str(start.phase), start.attempt, start, last, cut=True)

    def series(self, quantity: str) -> list[Point]:
        """Return (t, value) of every sample that has the quantity, in order of time."""
        return sorted((s.t, s.values[quantity]) for s in self.samples if quantity in s.values)

    def integral(self, quantity: str, windows: Iterable[Window]) -> tuple[float, int] | None:
        """Return (integral over time by trapezoid, samples used), or None without two samples around it.

        Values between samples are linear; before the first and after the last sample they are held.
        """
        return integral(self.series(quantity), windows)

    def peak(self, quantity: str, windows: Iterable[Window]) -> float | None:
        """Return the largest sample of a quantity inside the windows, edges included; None without any."""
        series = self.series(quantity)
        spans = [
            (bisect_left(series, w.start.t, key=time_of), bisect_right(series, w.end.t, key=time_of)) for w in windows
        ]
        return max((value for low, high in spans for _, value in series[low:high]), default=None)


def trapezoid(points: Sequence[Point]) -> float:
    """Return the integral over time of points, linear in between (value x seconds)."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def integral(series: Sequence[Point], windows: Iterable[Window]) -> tuple[float, int] | None:
    """Return the integral of a series, in order of time, over windows, and the samples used (see Trace.integral)."""
    if len(series) < 2:
        return None
    total, used = 0.0, 0
    for window in windows:
        low = bisect_left(series, window.start.t, key=time_of)
        inside = series[low : bisect_right(series, window.end.t, key=time_of)]
        used += len(inside)
        total += trapezoid([_at(series, window.start.t), *inside, _at(series, window.end.t)])
    return total, used


def _take(data: Mapping[str, Any], samples: list[Sample], missing: dict[str, str]) -> None:
    """Add a decoded line to what it belongs to."""
    if "missing" in data:
        missing |= data["missing"]
    else:
        edge, phase = data.get("edge"), data.get("phase")
        values = {str(k): float(v) for k, v in data["values"].items()}
        samples.append(Sample(float(data["t"]), values, phase, edge, data.get("attempt", 1)))


def _at(series: Sequence[Point], t: float) -> Point:
    index = bisect_left(series, t, key=time_of)
    if index in (0, len(series)) or series[index][0] == t:
        return t, series[min(index, len(series) - 1)][1]
    (low, a), (high, b) = series[index - 1 : index + 1]
    return t, a + (t - low) / (high - low) * (b - a)


def _refuse(constant: str) -> Iterator[None]:
    raise ValueError(f"{constant} is not a number")
