"""How numbers are written, everywhere the same. What was not measured is a word, never a number."""

from __future__ import annotations

import re
from collections.abc import Callable

from cprbench.judge.groups import Figure, Told
from cprbench.judge.statistics import Estimate
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

#: Reasons that judge/ gives as codes, in words.
_CODES = {
    "cost_is_zero": "the cost is 0",
    "cost_not_finite": "a cost is not finite",
    "cost_not_positive": "a cost is not above 0",
    "denominator_not_positive": "what it is divided by is not shown to be above 0",
    "full_gain_not_positive": "full tuning's own gain is not shown to be above 0",
    "gain_not_positive": "the gain is not above 0",
    "not_finite": "a value is not finite",
    "zero_variance": "no interval: all blocks say the same",
}
_CODE = re.compile(rf"\b({'|'.join(_CODES)})\b")


def in_words(why: str) -> str:
    """Return a reason with words in place of judge/'s codes."""
    return _CODE.sub(lambda found: _CODES[found[0]], why)


def resource_title(resource: str) -> str:
    """Return a resource's name for people."""
    return _UNITS[resource]


def number(figure: Told, digits: int = 3) -> str:
    """Return a figure with `digits` significant digits, or its reason."""
    if figure.value is None:
        return figure.why or "not measured"
    value = float(f"{figure.value:.{digits}g}")  # 9.996 is 10.0, and has one decimal then
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value))))
    if whole > digits:
        return f"{figure.value:.0f}"
    return f"{value:.{digits - whole}f}" if abs(value) >= 1 else f"{value:.{digits}g}"


def tick(value: float) -> str:
    """Return a number as an axis shows it: as short as it can be told, powers of ten where it is large or small."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    digits, power = f"{value:.3e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digits = digits.rstrip("0").rstrip(".")
    return f"10{raised}" if digits == "1" else f"{digits}×10{raised}"


def score(figure: Told) -> str:
    """Return a score with three decimals, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:.3f}"


def signed(figure: Told) -> str:
    """Return a gain with its sign and three decimals, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:+.3f}"


def percent(figure: Told) -> str:
    """Return a share as a whole percentage, with a digit where it is below one, or its reason."""
    if figure.value is None:
        return figure.why or "not measured"
    share = 100 * figure.value
    return f"{share:.1g} %" if 0 < abs(share) < 0.5 else f"{share:.0f} %"


def times(figure: Told) -> str:
    """Return a multiple, or its reason."""
    return figure.why or "not measured" if figure.value is None else f"{figure.value:.2f}x"


def with_interval(show: Callable[[Told], str], estimate: Estimate) -> str:
    """Return an estimate as `show` writes numbers, with its 95 % interval where it has one."""
    if estimate.low is None or estimate.high is None:
        return show(estimate)
    return f"{show(estimate)} [{show(Figure(estimate.low))}, {show(Figure(estimate.high))}]"


def missing_resources(record: RunRecord) -> dict[str, str]:
    """Return the resources that a record's gamma lacks, with the reasons of the readings they would come from."""
    why = {r.quantity: r.why_missing for r in record.readings if r.phase == "billed" and r.why_missing}
    energy = ("gpu_energy_joules",) if record.environment.devices else ("cpu_energy_joules",)
    found = {}
    for resource in RESOURCES:
        if getattr(record.gamma, resource) is None:
            names = energy if resource == "energy_kwh" else _READINGS.get(resource, ())
            found[resource] = next((str(why[name]) for name in names if name in why), "not measured")
    return found


def resource_lines(record: RunRecord) -> list[str]:
    """Return a line per resource of a record: its value, or why there is none."""
    missing = missing_resources(record)
    figures = {r: Figure(getattr(record.gamma, r), missing.get(r)) for r in RESOURCES}
    return [f"  {_UNITS[resource]}: {number(figure)}" for resource, figure in figures.items()]
