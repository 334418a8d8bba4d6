"""Trace -> readings per phase, seconds and gamma. Pure: a stored samples.jsonl gives the same numbers again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprbench.meters.carbon import JOULES_PER_KWH, CarbonFactors, co2_reading
from cprbench.meters.cpu import modelled_cpu_readings, rapl_readings
from cprbench.meters.energy import Cuts, NotMeasured, Source, SpanKey, gpu_readings, reading
from cprbench.meters.flops import Flops
from cprbench.meters.trace import Trace, Window, trapezoid
from cprbench.spec import BILLED_PHASES, PHASES, Gamma, Phase, Reading

_BYTE_SECONDS_PER_GB_HOUR = 1e9 * 3600
#: memory basis -> the readings of its integral and of its peak
_BASES = {
    "rss": ("rss_byte_seconds", "peak_rss_bytes"),
    "pss": ("pss_tree_byte_seconds", "peak_pss_tree_bytes"),
    "device": ("device_memory_byte_seconds", "peak_device_memory_bytes"),
    "reserved": ("cuda_reserved_byte_seconds", "peak_cuda_reserved_bytes"),
}
#: The peak of one of several processes that train together; peak_rss_bytes is then the sum of theirs.
_RANK_PEAK = re.compile(r"rank\d+_peak_rss_bytes$")
_ByQuantity = Mapping[str, list[Reading]]
#: Memories that are integrated over time, and why one may have no samples at all.
_MEMORIES = (
    ("rss", "no single process was watched"),
    ("pss_tree", "no process tree was watched"),
    ("cuda_reserved", "no CUDA"),
    ("cuda_allocated", "no CUDA"),
)


@dataclass(frozen=True)
class Account:
    """What a run cost: readings for people, seconds and gamma for formulas."""

    readings: list[Reading]
    seconds: dict[str, float | None]
    gamma: Gamma
    peak_memory_bytes: int | None


def account(
    trace: Trace,
    flops: Mapping[tuple[str, int], Flops] | str,
    *,
    cores: int,
    accelerators: float | None,
    carbon: CarbonFactors | None = None,
    earlier: Sequence[Reading] = (),
    cached: Sequence[Reading] = (),
    flags: Sequence[str] = (),
    phases: Sequence[Phase] = BILLED_PHASES,
) -> Account:
    """Return the account of a trace.

    `flops`: by (phase, attempt), or the reason why there is no count. `accelerators`: those allotted, 0 on a CPU
    run (device hours are then host hours), None where not known. `earlier`: readings of attempts before this
    trace, which are billed as well. `cached`: readings of work that this attempt took over from another run, billed as
    if it had done it. `flags`: put on every reading of a shared device. `phases`: those that are billed.
    """
    spans = _spans(trace.windows(), phases)
    on_gpu = accelerators is None or accelerators > 0
    fresh: list[Reading] = []
    cuts = Cuts(trace)
    for key, windows in spans.items():
        if not windows:  # an attempt that died before anything was billed: no time, and nothing to measure in it
            fresh.append(reading(key, "seconds", "counter", 0.0))
            continue
        fresh += _times_and_memory(cuts, key, windows)
        fresh.append(_flops(key, flops, [p for p in phases if (p, key[1]) in spans]))
    spans = {key: windows for key, windows in spans.items() if windows}
    energies = [*gpu_readings(trace, spans), *rapl_readings(trace, spans), *modelled_cpu_readings(trace, spans)]
    fresh = [r.model_copy(update={"flags": sorted({*r.flags, *flags})}) for r in (*fresh, *energies)]
    for key in spans:
        own = _by_quantity(r for r in fresh if (r.phase, r.attempt) == key)
        fresh.append(co2_reading(key, _scope(own, on_gpu)[0], carbon))
    # With the factors of this launch, whatever those were under which it was measured.
    again = [r for r in cached if r.quantity != "co2_kg"]
    for key in dict.fromkeys((r.phase, r.attempt) for r in again):
        own = _by_quantity(r for r in again if (r.phase, r.attempt) == key)
        again.append(co2_reading(key, _scope(own, on_gpu)[0], carbon))
    fresh = [*again, *fresh]
    readings = [*earlier, *fresh]
    billed = _by_quantity(r for r in readings if r.phase == "billed")
    # A phase that did not take place took no time: that zero is measured.
    seconds: dict[str, float | None] = {phase: _seconds(readings, phase) for phase in (*PHASES, "billed")}
    seconds["billed_last_attempt"] = _seconds(fresh, "billed")
    hours = _seconds(readings, "billed") / 3600
    basis = _memory_basis(billed, on_gpu)
    area, peak = _BASES[basis]
    byte_seconds, flop_total = _total(billed[area]), _total(billed["flops"])
    scoped, scope = _scope(billed, on_gpu)
    joules = _total(scoped)
    gamma = Gamma(
        device_hours=None if accelerators is None else hours * (accelerators or 1),
        core_hours=hours * cores,
        energy_kwh=None if joules is None else joules / JOULES_PER_KWH,
        memory_gb_hours=None if byte_seconds is None else byte_seconds / _BYTE_SECONDS_PER_GB_HOUR,
        co2_kg=_total(billed["co2_kg"]),
        flops=None if flop_total is None else round(flop_total),
        energy_scope=None if joules is None else scope,
        memory_basis=basis,
    )
    peaks = [r.value for r in billed[peak] if r.value is not None]
    return Account(readings, seconds, gamma, int(max(peaks)) if peaks else None)


def _spans(windows: Sequence[Window], billed: Sequence[Phase]) -> dict[SpanKey, list[Window]]:
    """Return the windows of every phase that took place, and per attempt the billed ones, metered as one."""
    spans: dict[SpanKey, list[Window]] = {}
    for attempt in sorted({w.attempt for w in windows}):
        own = [w for w in windows if w.attempt == attempt]
        for phase in PHASES:
            if found := [w for w in own if w.phase == phase]:
                spans[(phase, attempt)] = found
        spans[("billed", attempt)] = [w for w in own if w.phase in billed]
    return spans


def _integral(cuts: Cuts, quantity: str, windows: Sequence[Window], why: str) -> tuple[float | None, int, str]:
    """Return (integral over the windows, samples, ""), or (None, 0, the reason)."""
    if not cuts.series(quantity):
        return None, 0, why
    total, used = 0.0, 0
    try:
        for window in windows:
            points, samples = cuts.points(quantity, window)
            total, used = total + trapezoid(points), used + samples
    except NotMeasured as refused:
        return None, 0, str(refused)
    return total, used, ""


def _times_and_memory(cuts: Cuts, key: SpanKey, windows: Sequence[Window]) -> list[Reading]:
    trace = cuts.trace
    flags = ["cut"] if any(window.cut for window in windows) else []

    def found(quantity: str, value: float | None, source: Source, why: str, **detail: Any) -> Reading:
        source_of = quantity.removeprefix("peak_").replace("_byte_seconds", "_bytes")
        told = trace.missing.get(quantity) or trace.missing.get(source_of) or why
        return reading(key, quantity, source, NotMeasured(told) if value is None else value, flags, **detail)

    def at_ends(quantity: str) -> list[float]:
        return [w.end.values[quantity] for w in windows if quantity in w.end.values]

    result = [found("seconds", sum(w.seconds for w in windows), "counter", "")]
    for name, why in _MEMORIES:
        value, used, refused = _integral(cuts, f"{name}_bytes", windows, why)
        result.append(found(f"{name}_byte_seconds", value, "sampled", refused, samples=used))
        if name.startswith("cuda"):
            # The allocator's own peak, taken at phase ends, catches what falls between two samples.
            peak = f"peak_{name}_bytes"
            result.append(found(peak, max(at_ends(peak), default=None), "counter", why))
    tree_peak, rss_peak = trace.peak("pss_tree_bytes", windows), trace.peak("rss_bytes", windows)
    result.append(found("peak_pss_tree_bytes", tree_peak, "sampled", "no process tree was watched"))
    no_end = "no window ended while it could be read"
    if "peak_rss_reset" in trace.missing:
        # The kernel's peak would be that of an earlier phase: the largest sample is ours.
        result.append(found("peak_rss_bytes", rss_peak, "sampled", trace.missing["peak_rss_reset"]))
    else:
        peaks = at_ends("peak_rss_bytes")
        if flags and rss_peak is not None:  # a killed phase left no peak, but it left samples
            peaks.append(rss_peak)
        result.append(found("peak_rss_bytes", max(peaks, default=None), "counter", no_end))
    result.append(found("pss_bytes", max(at_ends("pss_bytes"), default=None), "counter", no_end))
    ranks = {name for w in windows for name in w.end.values if _RANK_PEAK.match(name)}
    result += [found(name, max(at_ends(name)), "counter", no_end) for name in sorted(ranks)]
    return result


def _flops(key: SpanKey, flops: Mapping[tuple[str, int], Flops] | str, billed: Sequence[str]) -> Reading:
    phase, attempt = key
    if isinstance(flops, str):
        return reading(key, "flops", "counted", NotMeasured(flops))
    done = sum((flops.get((p, attempt), Flops()) for p in (billed if phase == "billed" else [phase])), Flops())
    return reading(key, "flops", "counted", done.total, (), padding=done.padding)


def _scope(found: _ByQuantity, on_gpu: bool) -> tuple[list[Reading], str]:
    """Return the energies that gamma's energy is the sum of, and what they cover (DESIGN section 1, gamma)."""
    if on_gpu:
        counted, sampled = found["gpu_energy_joules"], found["gpu_energy_sampled_joules"]
        if _total(counted) is None and _total(sampled) is not None:
            return sampled, "gpu boards (power samples)"
        return counted, "gpu boards"
    packages, dram = found["cpu_energy_joules"], found["ram_energy_joules"]
    if _total(dram) is None:
        return packages, "rapl packages"
    return [*packages, *dram], "rapl packages + dram"


def _memory_basis(billed: _ByQuantity, on_gpu: bool) -> str:
    """Return what memory_gb_hours is made of: on a shared GPU the device's own use is not ours."""
    totals = {basis: _total(billed[area]) for basis, (area, _) in _BASES.items()}
    if not on_gpu:
        return "pss" if totals["rss"] is None and totals["pss"] is not None else "rss"
    shared = any("shared" in r.flags for r in billed["device_memory_byte_seconds"])
    return "reserved" if shared or totals["device"] is None else "device"


def _by_quantity(readings: Iterable[Reading]) -> _ByQuantity:
    found: dict[str, list[Reading]] = defaultdict(list)
    for r in readings:
        found[r.quantity].append(r)
    return found


def _seconds(readings: Iterable[Reading], phase: str) -> float:
    return _total(r for r in readings if r.phase == phase and r.quantity == "seconds") or 0.0


def _total(readings: Iterable[Reading]) -> float | None:
    """Return the sum over attempts; None as soon as one part was not measured, or when there is none."""
    values = [r.value for r in readings]
    if not values or any(value is None for value in values):
        return None
    return sum(value for value in values if value is not None)
