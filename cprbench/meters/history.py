"""The running tally (paper section 5, Tracking): gamma so far, beside the loss, in history.jsonl.

The child writes what it knows as it goes (step, seconds, loss, validation psi, FLOPs); the parent's samples add the
rest once the run is over, at every validation and every N-th step, so that the tally costs the run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cprbench.meters import hardware
from cprbench.meters.cpu import rapl_readings
from cprbench.meters.energy import gpu_readings
from cprbench.meters.trace import Trace, Window
from cprbench.spec import BILLED_PHASES, Phase

#: About this many rows of a history carry a running gamma, besides the validated ones.
_TALLIES = 20


def finish_history(path: Path, trace: Trace, phases: Collection[Phase] = BILLED_PHASES) -> None:
    """Add `gamma` (billed so far, in `phases`; None: not measured) to a history's rows. A torn last line is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    billed = [w for w in trace.windows() if w.phase in phases]
    every = max(1, len(lines) // _TALLIES)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise
            break  # torn by the death of the child
        at = row.pop("t")
        if "validation" in row or number % every == 0 or number == len(lines):
            row["gamma"] = _tally(trace, billed, at, row)
        rows.append(json.dumps(row))
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def _tally(trace: Trace, billed: Sequence[Window], at: float, row: dict[str, Any]) -> dict[str, float | None]:
    so_far = [replace(w, end=replace(w.end, t=min(w.end.t, at))) for w in billed if w.start.t < at]
    memory = trace.integral("rss_bytes", so_far)
    hours = row["seconds"] / 3600
    spans = {("train", 1): so_far}  # not "billed": a running value is no total, so the floor does not apply to it
    readings = [*gpu_readings(trace, spans), *rapl_readings(trace, spans)]  # type: ignore[arg-type]
    joules = {r.quantity: r.value for r in readings if r.quantity in ("gpu_energy_joules", "cpu_energy_joules")}
    return {
        "device_hours": hours,
        "core_hours": hours * hardware.bound_cores(),
        "rss_gb_hours": None if memory is None else memory[0] / 1e9 / 3600,
        "gpu_energy_joules": joules["gpu_energy_joules"],
        "cpu_energy_joules": joules["cpu_energy_joules"],
        "flops": row["flops"],
    }
