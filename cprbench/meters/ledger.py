"""Trace -> readings per phase, seconds and gamma. Pure: a stored samples.jsonl gives the same numbers again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cprbench.meters.flops import Flops
from cprbench.meters.trace import Trace, Window
from cprbench.spec import BILLED_PHASES, PHASES, Gamma, Reading

_BYTE_SECONDS_PER_GB_HOUR = 1e9 * 3600
_NO_ENERGY = "no energy meter: neither a GPU counter nor RAPL was read on this machine"
_NO_CARBON = "no energy was measured, so there is nothing to multiply with a carbon intensity"


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
    accelerators: int,
    earlier: Sequence[Reading] = (),
) -> Account:
    """Return the account of a trace.

    `flops`: by (phase, attempt), or the reason why there is no count. `accelerators`: 0 on a CPU run, whose
    device hours are host hours. `earlier`: readings of attempts before this trace, which are billed as well.
    """
    windows = trace.windows()
    attempts = sorted({w.attempt for w in windows})
    readings: list[Reading] = list(earlier)
    for attempt in attempts:
        for phase in PHASES:
            own = [w for w in windows if w.phase == phase and w.attempt == attempt]
            if own:
                readings += _phase_readings(trace, own, flops, phase, attempt)
    billed = [r for r in readings if r.phase in BILLED_PHASES]
    seconds: dict[str, float | None] = {phase: _total(readings, "seconds", (phase,)) or 0.0 for phase in PHASES}
    billed_seconds = _total(billed, "seconds", BILLED_PHASES) or 0.0
    seconds["billed"] = billed_seconds
    last = [r for r in billed if r.attempt == max(attempts, default=1)]
    seconds["billed_last_attempt"] = _total(last, "seconds", BILLED_PHASES) or 0.0
    hours = billed_seconds / 3600
    on_gpu = accelerators > 0
    memory = "cuda_reserved_byte_seconds" if on_gpu else "rss_byte_seconds"
    byte_seconds = _total(billed, memory, BILLED_PHASES)
    flop_total = _total(billed, "flops", BILLED_PHASES)
    gamma = Gamma(
        device_hours=hours * max(1, accelerators),
        core_hours=hours * cores,
        energy_kwh=None,
        memory_gb_hours=None if byte_seconds is None else byte_seconds / _BYTE_SECONDS_PER_GB_HOUR,
        co2_kg=None,
        flops=None if flop_total is None else round(flop_total),
        energy_scope=None,
        memory_basis="reserved" if on_gpu else "rss",
    )
    peak_name = "peak_cuda_reserved_bytes" if on_gpu else "peak_rss_bytes"
    peaks = [r.value for r in billed if r.quantity == peak_name and r.value is not None]
    return Account(readings, seconds, gamma, int(max(peaks)) if peaks else None)


def _phase_readings(
    trace: Trace,
    windows: Sequence[Window],
    flops: Mapping[tuple[str, int], Flops] | str,
    phase: str,
    attempt: int,
) -> list[Reading]:
    flags = ["cut"] if any(window.cut for window in windows) else []

    def reading(quantity: str, value: float | None, source: str, why: str, **detail: float) -> Reading:
        return Reading.model_validate(
            {
                "phase": phase,
                "attempt": attempt,
                "quantity": quantity,
                "value": value,
                "source": None if value is None else source,
                "why_missing": why if value is None else None,
                "flags": flags,
                "detail": detail,
            }
        )

    found = [reading("seconds", sum(w.seconds for w in windows), "counter", "")]
    found += _memory(trace, windows, reading)
    if isinstance(flops, str):
        found.append(reading("flops", None, "counted", flops))
    else:
        done = flops.get((phase, attempt), Flops())
        found.append(reading("flops", done.total, "counted", "", padding=done.padding))
    found.append(reading("energy_joules", None, "counter", _NO_ENERGY))
    found.append(reading("co2_kg", None, "modelled", _NO_CARBON))
    return found


def _memory(trace: Trace, windows: Sequence[Window], reading: object) -> Iterable[Reading]:
    assert callable(reading)
    for prefix in ("rss", "cuda_reserved", "cuda_allocated"):
        quantity = f"{prefix}_bytes"
        why = trace.missing.get(quantity) or (
            "no CUDA device" if prefix.startswith("cuda") else "fewer than two samples in the run"
        )
        integral = trace.integral(quantity, windows)
        value, used = integral if integral is not None else (None, 0)
        yield reading(f"{prefix}_byte_seconds", value, "sampled", why, samples=used)
    ends = [w.end.values for w in windows]
    peaks = [values["peak_rss_bytes"] for values in ends if "peak_rss_bytes" in values]
    why = trace.missing.get("peak_rss_bytes", "the process ended before its peak was read")
    yield reading("peak_rss_bytes", max(peaks, default=None), "counter", why)
    shared = [values["pss_bytes"] for values in ends if "pss_bytes" in values]
    why = trace.missing.get("pss_bytes", "the process ended before it was read")
    yield reading("pss_bytes_at_end", shared[-1] if shared else None, "counter", why)
    for prefix in ("cuda_reserved", "cuda_allocated"):
        peak = trace.peak(f"{prefix}_bytes", windows)
        yield reading(f"peak_{prefix}_bytes", peak, "sampled", "no CUDA device")


def _total(readings: Iterable[Reading], quantity: str, phases: Sequence[str]) -> float | None:
    """Return the sum of a quantity over phases and attempts; None as soon as one part was not measured."""
    values = [r.value for r in readings if r.quantity == quantity and r.phase in phases]
    if not values or any(value is None for value in values):
        return None
    return sum(value for value in values if value is not None)
