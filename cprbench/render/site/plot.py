"""Small drawings as numbers for a template: axes, marks and lines in the units of a viewBox. templates/site/plane.js
draws the same plane again for the rows that a reader asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cprbench.render.figures.style import COLOURS, MARKERS, METHODS
from cprbench.render.numbers import tick

WIDE, HIGH = 420, 250  # of a viewBox
LEFT, RIGHT, TOP, BOTTOM = 44, 22, 10, 44  # what axes take of it
#: matplotlib's marks, about as large as one another, around 0 0.
_PATHS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.5-3.5h7v7h-7z",
    "^": "M0-4.5L4.3 3.5H-4.3z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "v": "M0 4.5L4.3-3.5H-4.3z",
    "P": "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "X": "M-4.5-2.3L-2.3-4.5L0-2.2L2.3-4.5L4.5-2.3L2.2 0L4.5 2.3L2.3 4.5L0 2.2L-2.3 4.5L-4.5 2.3L-2.2 0z",
    "<": "M-4.5 0L3.5-4.3V4.3z",
    ">": "M4.5 0L-3.5-4.3V4.3z",
    "p": "M0-4.6L4.4-1.4L2.7 3.7H-2.7L-4.4-1.4z",
    "h": "M0-4.6L4-2.3V2.3L0 4.6L-4 2.3V-2.3z",
    "*": "M0-5.4L1.3-1.8L5.1-1.7L2.1.7L3.2 4.4L0 2.2L-3.2 4.4L-2.1.7L-5.1-1.7L-1.3-1.8z",
}
#: A path with its colour per look; looks are figures.style's, so a method is drawn alike everywhere.
LOOKS = tuple((_PATHS[mark], COLOURS[i % len(COLOURS)]) for i, mark in enumerate(MARKERS))


def looks_of(methods: Iterable[str]) -> dict[str, int]:
    """Return the index in LOOKS per method: fixed for those that cprbench brings, the others follow by name."""
    known = set(methods)
    order = [*METHODS, *sorted(known.difference(METHODS))]
    return {method: order.index(method) % len(LOOKS) for method in order if method in known}


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, over `length` units from `start` on (negative: upwards)."""

    low: float
    high: float
    start: float
    length: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return where a value stands."""
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return round(self.start + self.length * (value - low) / (high - low), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return (place, label) of a few round values."""
        return [(self.at(value), tick(value)) for value in self._round() if self.low <= value <= self.high]

    def _round(self) -> list[float]:
        if self.logarithmic and self.high >= 3 * self.low:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high < 50 * self.low else (1,)
            return [step * 10.0**power for power in powers for step in steps]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(n for n in (1, 2, 2.5, 5, 10) if n * power >= rough * 0.999)
        return [round(n * step, 12) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def across(values: Sequence[float], *, logarithmic: bool) -> Axis:
    """Return an x axis that holds all values, which are positive where it is logarithmic."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.04, 1.05)
        return Axis(low / room, high * room, LEFT, WIDE - LEFT - RIGHT, True)
    return Axis(*_roomy(low, high), LEFT, WIDE - LEFT - RIGHT)


def upwards(values: Sequence[float]) -> Axis:
    """Return a y axis that holds all values."""
    return Axis(*_roomy(min(values), max(values)), HIGH - BOTTOM, TOP + BOTTOM - HIGH)


def _roomy(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def steps(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    """Return the path of a front through (cost, score): level up to the next point, and on to the right edge."""
    line = sorted(points)
    parts = [f"M{x.at(line[0][0])} {y.at(line[0][1])}", *(f"H{x.at(cost)}V{y.at(score)}" for cost, score in line[1:])]
    return "".join(parts) + f"H{WIDE - RIGHT}"
