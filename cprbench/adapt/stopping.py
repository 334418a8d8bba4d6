"""When to stop: the marginal return of training (paper section 3, and Stage 1 of section 5).

A run stops when DeltaPsi / DeltaGamma, averaged over a moving window, stays below eta for P successive checks.
One rule for the training loop, the callback for other loops and the replay of a curve. It reads numbers, nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cprbench.errors import SpecError, TrainingError

_SHARE = re.compile(r"(.*)x")


@dataclass(frozen=True)
class Point:
    """One check that counted: psi, gamma so far, and the window's ratio (None while no window is full)."""

    check: int  # which call of StopRule.add, from 1
    psi: float
    gamma: float
    ratio: float | None


class StopRule:
    """Says when the last `window` steps between checks bought too little, `patience` checks in a row.

    `eta`: psi per unit of the resource (3e-15), or a share of the largest window ratio so far ("0.1x"). The ratio of a
    window is all that psi rose in it over all that was spent in it: the mean of its marginal returns, weighted by
    spending, so that unevenly spaced checks count for what they cost. While no window has gained anything, a share of
    the largest ratio has no scale, and no check counts as below. Raises SpecError for settings that mean nothing.
    """

    def __init__(self, eta: str | float = "0.1x", window: int = 3, patience: int = 2, resource: str = "flops") -> None:
        self.eta, self.window, self.patience, self.resource = eta, window, patience, resource
        self._share, self._eta = _parsed(eta)
        for name, value in (("window", window), ("patience", patience)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"stop.{name} is {value!r}: it counts checks, so give a whole number from 1 up")
        self.points: list[Point] = []
        self.ratio: float | None = None  # of the last full window
        self.largest: float | None = None
        self.stopped_at: int | None = None  # the check, from 1, at which the rule first said stop
        self._checks = self._below = 0
        self._skipped: dict[str, int] = {}

    @property
    def threshold(self) -> float | None:
        """Return what the window ratio is held against now; None: a share, and no window has gained anything yet."""
        if not self._share:
            return self._eta
        return None if self.largest is None or self.largest <= 0 else self._eta * self.largest

    def add(self, psi: float | None, gamma: float | None) -> bool:
        """Take a check: psi (higher is better) and gamma, the resource spent since the start. True: stop now.

        A check that lacks one of them, or before which nothing was spent, is skipped: it neither breaks nor extends a
        row of low ratios. Raises TrainingError for NaN, infinity, and a gamma that falls.
        """
        self._checks += 1
        if psi is None or gamma is None:
            return self._skip("not measured")
        psi, gamma = self._number("psi", psi), self._number(self.resource, gamma)
        before = self.points[-1].gamma if self.points else 0.0
        if gamma < before:
            raise TrainingError(
                f"check {self._checks}: {self.resource} fell from {before:g} to {gamma:g}. The stop rule needs what "
                "was spent since the start; give the running total of one run"
            )
        if self.points and gamma == self.points[-1].gamma:
            return self._skip(f"no {self.resource} spent since the check before")
        if len(self.points) >= self.window:
            first = self.points[-self.window]
            self.ratio = self._number("DeltaPsi/DeltaGamma", (psi - first.psi) / (gamma - first.gamma))
            self.largest = self.ratio if self.largest is None else max(self.largest, self.ratio)
            low = self.threshold is not None and self.ratio < self.threshold
            self._below = self._below + 1 if low else 0
        self.points.append(Point(self._checks, psi, gamma, self.ratio))
        if self.stopped_at is None and self._below >= self.patience:
            self.stopped_at = self._checks
        return self.stopped_at is not None

    def told(self) -> dict[str, Any]:
        """Return the rule, what it saw and what it decided, as JSON can hold it."""
        return {
            "eta": self.eta,
            "window": self.window,
            "patience": self.patience,
            "resource": self.resource,
            "checks": self._checks,
            "skipped": dict(self._skipped),
            "ratio": self.ratio,
            "largest": self.largest,
            "threshold": self.threshold,
            "stopped_at": self.stopped_at,
            "why": self.why,
        }

    @property
    def why(self) -> str:
        """Return in a sentence why the rule stopped, or why it did not."""
        ratio = f"psi gained per {self.resource} (window {self.window})"
        if self.stopped_at is not None:
            return f"check {self.stopped_at}: {ratio} stayed below eta = {self.eta} (patience {self.patience})"
        if not self.points:
            return f"never fired: none of {self._checks} checks had both psi and {self.resource}"
        if len(self.points) < (need := self.window + self.patience):
            return f"never fired: {len(self.points)} checks counted, and it needs {need} at least"
        if self.threshold is None:
            return f"never fired: psi rose over no window of {self.window}, so a share of the largest has no scale"
        return f"never fired: {ratio} did not stay below eta (patience {self.patience})"

    def _skip(self, why: str) -> bool:
        self._skipped[why] = self._skipped.get(why, 0) + 1
        return self.stopped_at is not None

    def _number(self, name: str, value: float) -> float:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise TrainingError(
                f"check {self._checks}: {name} is {value}, and no ratio can be taken of it. "
                "Leave a value that was not measured empty (None)"
            )
        return value


def replay(curve: Iterable[tuple[float | None, float | None]], rule: StopRule) -> dict[str, Any]:
    """Return what `rule` (fresh) makes of a whole curve of (psi, gamma): `rule.told()` and the price of stopping.

    `gamma`, `psi`: where it stops, or the curve's end. `saved`: the share of the curve's gamma left unspent. `lost`:
    psi at the end less psi there; `lost_share`: that as a share of what psi rose by from the first point to the last,
    None (with `lost_share_why`) where it did not rise. Raises TrainingError for a curve without a single point.
    """
    for psi, gamma in curve:
        rule.add(psi, gamma)
    if not rule.points:
        raise TrainingError(f"{rule.why}: there is no curve to replay")
    first, end = rule.points[0], rule.points[-1]
    at = next((point for point in rule.points if point.check == rule.stopped_at), end)
    lost, gain = end.psi - at.psi, end.psi - first.psi
    return rule.told() | {
        "gamma": at.gamma,
        "psi": at.psi,
        "saved": 0.0 if at is end else 1 - at.gamma / end.gamma,
        "lost": lost,
        "lost_share": lost / gain if gain > 0 else None,
        "lost_share_why": None if gain > 0 else "psi did not rise from the first point to the last",
    }


def _parsed(eta: str | float) -> tuple[bool, float]:
    """Return (whether eta is a share of the largest ratio, its number)."""
    share = _SHARE.fullmatch(eta) if isinstance(eta, str) else None
    try:
        number = float(share[1] if share else eta)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(eta, bool) or "_" in str(eta):  # Python reads these as numbers, nobody else does
        number = math.nan
    if share and 0 < number < 1:
        return True, number
    if not share and 0 <= number < math.inf:
        return False, number
    raise SpecError(
        f"stop.eta is {eta!r}: give psi per unit of the resource, 0 or more (3e-15), or a share of the largest window "
        "ratio so far, between 0x and 1x (0.1x)"
    )
