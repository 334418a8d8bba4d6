"""How numbers are written, everywhere the same. What was not measured is a word, never a number."""

from __future__ import annotations

from cprbench.judge.cpr import Figure
from cprbench.spec import RESOURCES, RunRecord

_UNITS = {
    "device_hours": "device hours",
    "core_hours": "core hours",
    "energy_kwh": "kWh",
    "memory_gb_hours": "GB·h",
    "co2_kg": "kg CO2",
    "flops": "FLOPs",
}

#: resource -> the readings whose reasons explain why it is missing
_READINGS = {
    "memory_gb_hours": ("rss_byte_seconds", "pss_tree_byte_seconds", "device_memory_byte_seconds"),
    "co2_kg": ("co2_kg",),
    "flops": ("flops",),
}


def resource_title(resource: str) -> str:
    """Return a resource's name for people."""
    return _UNITS[resource]


def number(figure: Figure, digits: int = 3) -> str:
    """Return a figure with `digits` significant digits, or its reason."""
    if figure.value is None:
        return figure.why or "not measured"
    value = figure.value
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"


def score(figure: Figure) -> str:
    """Return a score with three decimals, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:.3f}"


def signed(figure: Figure) -> str:
    """Return a gain with its sign and three decimals, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:+.3f}"


def percent(figure: Figure) -> str:
    """Return a share as a whole percentage, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{100 * figure.value:.0f} %"


def times(figure: Figure) -> str:
    """Return a multiple, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:.2f}x"


def resource_lines(record: RunRecord) -> list[str]:
    """Return a line per resource of a record: its value, or why there is none."""
    billed = [r for r in record.readings if r.phase == "billed" and r.why_missing]
    lines = []
    for resource in RESOURCES:
        value = getattr(record.gamma, resource)
        names = _READINGS.get(resource, ())
        if resource == "energy_kwh":  # of whatever the run ran on
            names = ("gpu_energy_joules",) if record.environment.devices else ("cpu_energy_joules",)
        why = next((str(r.why_missing) for r in billed if r.quantity in names), "not measured")
        lines.append(f"  {_UNITS[resource]}: {number(Figure(value, None if value is not None else why))}")
    return lines
