"""How numbers are written, everywhere the same. What was not measured is a word, never a number."""

from __future__ import annotations

from cprbench.judge.cpr import Figure

_UNITS = {
    "device_hours": "device hours",
    "core_hours": "core hours",
    "energy_kwh": "kWh",
    "memory_gb_hours": "GB·h",
    "co2_kg": "kg CO2",
    "flops": "FLOPs",
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
