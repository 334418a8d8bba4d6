"""Energy and device memory out of a trace. Pure: a stored samples.jsonl gives the same readings again.

What is refused rather than guessed at: a value that is negative or no number, a window in which a clock
jumped or the machine slept, a window whose ends no sample reaches, a counter that does not move.
Per-device sample keys are "gpu<position>_<suffix>"; device.py writes them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, TypeVarTuple

from cprbench.meters.trace import Point, Sample, Trace, Window, time_of, trapezoid
from cprbench.spec import Phase, Reading

Given = TypeVarTuple("Given")
SpanKey = tuple[Phase | Literal["billed"], int]
#: (phase, attempt) -> its windows; ("billed", 1) holds every billed window, metered as one.
Spans = Mapping[SpanKey, Sequence[Window]]
Flags = Collection[str]
Source = Literal["counter", "sampled", "rapl", "counted", "modelled"]

_RAPL = ("rapl_package_energy_joules", "rapl_dram_energy_joules")
#: A billed energy needs this many samples (MLPerf's floor for a power measurement).
FLOOR_SAMPLES = 60
#: A longer silence inside a window means that the machine slept or the meter stood still.
LARGEST_GAP_SECONDS = 5.0
#: Monotonic and wall clock may part by this much between two samples; NTP slews far less.
CLOCK_SECONDS = 1.0
#: How far a window's end may lie from the nearest sample where its edge carries no value (a killed process).
EDGE_SECONDS = 0.25
#: Counter and power samples that differ by a larger share are flagged.
DISAGREEMENT = 0.10
#: The child stamps an edge and the parent reads it later, so two counter values can stand in the wrong order.
#: After a true reset the counter does not climb back to its old value within this time.
REORDER_SECONDS = 5.0
#: Power samples further apart do not cover a reset of the counter.
COVER_SECONDS = 1.0
#: Sample key of the wall clock (seconds since 1970), beside which a sleep of the machine shows.
WALL = "wall_seconds"


class NotMeasured(Exception):  # noqa: N818 - a verdict that becomes why_missing; no user ever meets it
    """Why a quantity has no value in a window."""


@dataclass(frozen=True)
class Amount:
    """What was measured in some windows: a value with its samples and its resolution (same unit)."""

    value: float
    samples: int
    resolution: float
    flags: frozenset[str] = frozenset()
    detail: Mapping[str, Any] = field(default_factory=dict)


def outcome(measure: Callable[[*Given], Amount], *given: *Given) -> Amount | NotMeasured:
    """Return what `measure` returns, or the NotMeasured that it raises."""
    try:
        return measure(*given)
    except NotMeasured as reason:
        return reason


def total(amounts: Sequence[Amount]) -> Amount:
    """Return the sum over a span's windows; raises NotMeasured where there are none, or it is not above 0."""
    if not amounts:
        raise NotMeasured("this phase has no window")
    value = sum(amount.value for amount in amounts)
    if not (math.isfinite(value) and value > 0):
        raise NotMeasured(f"{value:g} J: the counter or sensor did not move, yet what runs takes energy")
    return Amount(
        value,
        sum(amount.samples for amount in amounts),
        sum(amount.resolution for amount in amounts),
        frozenset[str]().union(*(amount.flags for amount in amounts)),
    )


class Cuts:
    """The samples of a trace, quantity by quantity, cut to windows."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.series = cache(trace.series)
        # Both clocks are judged by the sampler's own lines: an edge is stamped before it is read and written.
        steady = [sample for sample in trace.samples if sample.edge is None]
        self._folds = _folds(steady)
        self._wall = sorted((sample.t, sample.values[WALL]) for sample in steady if WALL in sample.values)

    def why(self, *names: str, default: str) -> str:
        """Return the reason that a meter gave for the first of `names`, else `default`."""
        return next((self.trace.missing[name] for name in names if name in self.trace.missing), default)

    def points(
        self, quantity: str, window: Window, *also: str, series: list[Point] | None = None
    ) -> tuple[list[Point], int]:
        """Return the points of a quantity from a window's start to its end, and how many are samples.

        Ends between two samples are interpolated. `also`: further names under which a meter may have given a
        reason; `series`: points to cut instead of the trace's own.
        Raises NotMeasured where the samples do not carry the window.
        """
        found = self.series(quantity) if series is None else series
        names, start, end = (quantity, *also), window.start.t, window.end.t
        self._refuse_clock(window)
        low, high = bisect_left(found, start, key=time_of), bisect_right(found, end, key=time_of)
        inside, before, after = found[low:high], found[max(0, low - 1) : low], found[high : high + 1]
        if not inside:
            raise NotMeasured(self.why(*names, default=f"no sample of {quantity} in {_place(window)}"))
        around = [*before, *inside, *after]
        for _, value in around:
            if not (math.isfinite(value) and value >= 0):
                raise NotMeasured(f"{quantity} read {value:g} in {_place(window)}, which is no measurement")
        gap = max((b[0] - a[0] for a, b in pairwise(around) if b[0] > start and a[0] < end), default=0.0)
        if gap > LARGEST_GAP_SECONDS:
            silence = f"no sample for {gap:.1f} s in {_place(window)}: the machine slept or the meter stood still"
            raise NotMeasured(self.why(*names, default=silence))
        # A meter that gave a reason may have died next to the edge: then its last value is not held.
        hold = 0.0 if any(name in self.trace.missing for name in names) else EDGE_SECONDS
        if quantity == "pss_tree_bytes" and hold:
            hold = max(hold, 2 * gap)  # its meter rests the longer the larger the tree, and cannot read one that ended
        head, tail = _end(start, inside[0], before, hold), _end(end, inside[-1], after, hold)
        if head is None or tail is None:
            side = "start" if head is None else "end"
            raise NotMeasured(self.why(*names, default=f"no sample of {quantity} at the {side} of {_place(window)}"))
        return [*head, *inside, *tail], len(inside)

    def _refuse_clock(self, window: Window) -> None:
        start, end = window.start.t, window.end.t
        if not (math.isfinite(start) and math.isfinite(end) and end >= start):
            raise NotMeasured(f"{_place(window)} runs from {start} s to {end} s, so its clock is not to be trusted")
        if any(low <= end and high >= start for low, high in self._folds):
            raise NotMeasured(f"the clock ran backwards in {_place(window)}")
        wall = self._wall
        near = wall[max(0, bisect_left(wall, start, key=time_of) - 1) : bisect_right(wall, end, key=time_of) + 1]
        for a, b in pairwise(near):
            jump = (b[1] - a[1]) - (b[0] - a[0])
            if not abs(jump) <= CLOCK_SECONDS:  # also true of NaN
                why = "the machine slept or its time was set"
                raise NotMeasured(f"the wall clock jumped by {jump:.1f} s in {_place(window)}: {why}")


def energy_reading(
    key: SpanKey, quantity: str, source: Source, found: Amount | NotMeasured, flags: Flags = ()
) -> Reading:
    """Return the reading of an energy in joules, under the rules that all measured energies keep.

    The billed total needs FLOOR_SAMPLES samples. A shorter phase keeps its value, with its resolution in the
    detail and the flag `coarse`.
    """
    if isinstance(found, Amount) and key[0] == "billed" and found.samples < FLOOR_SAMPLES:
        found = NotMeasured(f"too short: {found.samples} samples, {FLOOR_SAMPLES} needed")
    if isinstance(found, NotMeasured):
        return reading(key, quantity, source, found)
    coarse = {"coarse"} if found.samples < FLOOR_SAMPLES else set[str]()
    detail = {"samples": found.samples, "resolution_joules": found.resolution, **found.detail}
    return reading(key, quantity, source, found.value, found.flags | coarse | set(flags), **detail)


def reading(
    key: SpanKey, quantity: str, source: Source, found: float | NotMeasured, flags: Flags = (), **detail: Any
) -> Reading:
    """Return a reading of a value, or of the reason why there is none."""
    phase, attempt = key
    if isinstance(found, NotMeasured):
        return Reading(phase=phase, attempt=attempt, quantity=quantity, value=None, why_missing=str(found))
    given = {"value": found, "source": source, "flags": sorted(flags), "detail": detail}
    return Reading.model_validate({"phase": phase, "attempt": attempt, "quantity": quantity} | given)


def counted_joules(values: Mapping[str, float]) -> float | None:
    """Return where the energy counters of one sample stand (J): of the GPU boards, else of RAPL; None without any."""
    boards = [value for key, value in values.items() if re.fullmatch(r"gpu\d+_energy_counter_joules", key)]
    found = boards or [values[key] for key in _RAPL if key in values]
    return sum(found) if found else None


# --- GPUs -------------------------------------------------------------------------------------------


def gpu_readings(trace: Trace, spans: Spans) -> list[Reading]:
    """Return energy and memory of all GPUs of a run together, for every span.

    gpu_energy_joules             the boards' energy counters (source counter)
    gpu_energy_sampled_joules     their power by trapezoid (source sampled)
    peak_device_memory_bytes      the largest sum of memory used above the baseline (source sampled)
    device_memory_byte_seconds    its integral over time (source sampled)
    Where one device is not measured, the sum is not. Two energies over 10 % apart, and by more than their
    resolutions, are flagged `counter_sampler_gap`; a counter that started anew is flagged `counter_reset`.
    """
    cuts = Cuts(trace)
    keys = {key for sample in trace.samples for key in sample.values} | set(trace.missing)
    positions = {int(match[1]) for key in keys if (match := re.match(r"gpu(\d+)_", key))}
    boards = [_Board(cuts, f"gpu{position}") for position in sorted(positions)]
    memory = _memory(trace, boards)
    readings: list[Reading] = []
    for key, windows in spans.items():
        counted = outcome(_energy, cuts, boards, windows, "gpu_energy_joules")
        sampled = outcome(_energy, cuts, boards, windows, "gpu_energy_sampled_joules")
        flags = ["counter_sampler_gap"] if _apart(counted, sampled) else []
        readings += [
            energy_reading(key, "gpu_energy_joules", "counter", counted, flags),
            energy_reading(key, "gpu_energy_sampled_joules", "sampled", sampled, flags),
            *_memory_readings(cuts, key, windows, boards, memory),
        ]
    return readings


class _Board:
    """One device's samples."""

    def __init__(self, cuts: Cuts, name: str) -> None:
        self.name, self.cuts = name, cuts
        self._counter, self._power = f"{name}_energy_counter_joules", f"{name}_power_watts"
        self._climb, self._resets, self._faults = _climb(cuts.series(self._counter), cuts.series(self._power))

    def counted(self, window: Window) -> Amount:
        """Return the rise of the energy counter in a window (joules)."""
        start, end = window.start.t, window.end.t
        for low, high, why in self._faults:
            if low <= end and high >= start:
                raise NotMeasured(f"{self.name}: {why} in {_place(window)}")
        points, samples = self.cuts.points(self._counter, window, "gpu_energy_joules", series=self._climb)
        # The counter goes up in steps; a window cannot be known better than one of them.
        step = max((b[1] - a[1] for a, b in pairwise(points)), default=0.0)
        reset = any(start < moment <= end for moment in self._resets)
        flags = frozenset({"counter_reset"} if reset else ())
        return Amount(points[-1][1] - points[0][1], samples, step, flags)

    def sampled(self, window: Window) -> Amount:
        """Return the integral of the sampled power over a window (joules)."""
        points, samples = self.cuts.points(self._power, window, "gpu_energy_sampled_joules")
        gap = max((b[0] - a[0] for a, b in pairwise(points)), default=0.0)
        return Amount(trapezoid(points), samples, gap * max(watts for _, watts in points))

    def conditions(self, windows: Sequence[Window]) -> dict[str, float]:
        """Return the hottest temperature and the mean and lowest clock, as far as they were sampled."""

        def inside(suffix: str) -> list[float]:
            series = self.cuts.series(f"{self.name}_{suffix}")
            spans = [
                (bisect_left(series, w.start.t, key=time_of), bisect_right(series, w.end.t, key=time_of))
                for w in windows
            ]
            return [series[place][1] for place in sorted({place for span in spans for place in range(*span)})]

        heat, clock = inside("temperature_celsius"), inside("sm_clock_mhz")
        found = {"temperature_celsius_max": max(heat)} if heat else {}
        return found | ({"sm_clock_mhz_mean": fmean(clock), "sm_clock_mhz_min": min(clock)} if clock else {})


def _energy(cuts: Cuts, boards: Sequence[_Board], windows: Sequence[Window], quantity: str) -> Amount:
    if not boards:
        raise NotMeasured(cuts.why(quantity, default="no GPU was metered in this run"))
    measure = _Board.counted if quantity == "gpu_energy_joules" else _Board.sampled
    each = {board.name: total([measure(board, window) for window in windows]) for board in boards}
    detail: dict[str, Any] = {"devices": {name: amount.value for name, amount in each.items()}}
    if quantity == "gpu_energy_joules":
        detail["conditions"] = {board.name: board.conditions(windows) for board in boards}
    summed = total(list(each.values()))
    return replace(summed, samples=min(amount.samples for amount in each.values()), detail=detail)


def _apart(counted: Amount | NotMeasured, sampled: Amount | NotMeasured) -> bool:
    if isinstance(counted, NotMeasured) or isinstance(sampled, NotMeasured):
        return False
    gap = abs(counted.value - sampled.value)
    return gap > DISAGREEMENT * counted.value and gap > max(counted.resolution, sampled.resolution)


def _climb(counter: list[Point], power: list[Point]) -> tuple[list[Point], list[float], list[tuple[float, float, str]]]:
    """Return (the counter without its resets, when it was reset, faults as (from, to, why)).

    What ran between the last value before a reset and the first one after it is taken from the power samples.
    """
    points: list[Point] = []
    resets: list[float] = []
    faults: list[tuple[float, float, str]] = []
    last: Point | None = None
    for index, (t, value) in enumerate(counter):
        if not (math.isfinite(value) and value >= 0):
            faults.append((t, t, f"the energy counter read {value:g}, which is no measurement"))
            continue
        rise = value if last is None else value - last[1]
        if last is not None and rise < 0 and not _returns(counter, index, last[1]):
            resets.append(t)
            filled = _covered(power, last[0], t)
            if filled is None:
                faults.append((last[0], t, "the energy counter was reset where no power sample covers it"))
            rise = filled or 0.0
        points.append((t, points[-1][1] + rise if points else rise))
        last = (t, value)
    return points, resets, faults


def _returns(counter: list[Point], index: int, old: float) -> bool:
    limit = bisect_right(counter, counter[index][0] + REORDER_SECONDS, key=time_of)
    return any(value >= old for _, value in counter[index + 1 : limit])


def _covered(power: list[Point], start: float, end: float) -> float | None:
    near = power[bisect_left(power, start, key=time_of) : bisect_right(power, end, key=time_of)]
    if len(near) < 2 or near[0][0] > start or near[-1][0] < end:
        return None
    if any(b[0] - a[0] > COVER_SECONDS or not math.isfinite(b[1]) or b[1] < 0 for a, b in pairwise(near)):
        return None
    return trapezoid(near)


def _memory(trace: Trace, boards: Sequence[_Board]) -> list[Point]:
    """Return the sum over all devices of the memory used, at every sample that has them all."""
    keys = [f"{board.name}_memory_used_bytes" for board in boards]
    points = []
    for sample in trace.samples:
        used = [sample.values[key] for key in keys if key in sample.values]
        if keys and len(used) == len(keys):
            # A device below its baseline lost somebody else's memory, which no other device can make good.
            points.append((sample.t, sum(used) if min(used) >= 0 else min(used)))
    return sorted(points)


def _memory_readings(
    cuts: Cuts, key: SpanKey, windows: Sequence[Window], boards: Sequence[_Board], memory: list[Point]
) -> list[Reading]:
    quantities = ("peak_device_memory_bytes", "device_memory_byte_seconds")
    also = [f"{board.name}_memory_used_bytes" for board in boards]
    try:
        if not boards or not windows:
            default = "this phase has no window" if boards else "no GPU was metered in this run"
            raise NotMeasured(cuts.why(*quantities, default=default))
        found = [cuts.points("device_memory", window, *also, series=memory) for window in windows]
    except NotMeasured as why:
        return [reading(key, quantity, "sampled", why) for quantity in quantities]
    peak = max(value for points, _ in found for _, value in points)
    samples = sum(count for _, count in found)
    values = (peak, sum(trapezoid(points) for points, _ in found))
    return [reading(key, q, "sampled", value, samples=samples) for q, value in zip(quantities, values, strict=True)]


def _end(t: float, inner: Point, outer: list[Point], hold: float) -> list[Point] | None:
    """Return the point to add at a window's end ([] where a sample lies on it); None: no sample is near."""
    if inner[0] == t:
        return []
    if outer:
        (low, a), (high, b) = sorted((inner, outer[0]))
        return [(t, a + (b - a) * (t - low) / (high - low))]
    return [(t, inner[1])] if abs(inner[0] - t) <= hold else None


def _folds(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the stretches of time that were lived twice: the clock ran back over them."""
    folds, high = [], -math.inf
    for sample in samples:
        if not math.isfinite(sample.t):
            return [(-math.inf, math.inf)]
        if sample.t < high - CLOCK_SECONDS:
            folds.append((sample.t, high))
        high = max(high, sample.t)
    return folds


def _place(window: Window) -> str:
    return f"phase {window.phase}, attempt {window.attempt}"
