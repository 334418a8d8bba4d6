"""The running tally (paper section 5, Tracking): gamma so far, beside the loss, in history.jsonl.

The child writes what it knows as it goes (step, seconds, loss, validation psi, FLOPs); the parent's samples add the
rest once the run is over, at every validation and every N-th step, so that the tally costs the run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cprbench.meters import hardware
from cprbench.meters.cpu import rapl_readings
from cprbench.meters.energy import SpanKey, gpu_readings
from cprbench.meters.trace import Trace, Window, integral
from cprbench.spec import BILLED_PHASES, Phase

#: About this many rows of a history carry a running gamma, besides the validated ones.
_TALLIES = 20


def finish_history(path: Path, trace: Trace, phases: Collection[Phase] = BILLED_PHASES) -> None:
    """Add `gamma` (billed so far, in `phases`; None: not measured) to a history's rows. A torn last line is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows, moments = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise
            break  # torn by the death of the child
        at = row.pop("t")
        rows.append(row)
        if carries_tally(number, len(lines), row):
            moments.append((row, at))
    found = tallies(
        trace, [(at, row["seconds"], row["flops"]) for row, at in moments], phases, cores=hardware.bound_cores()
    )
    for (row, _), tally in zip(moments, found, strict=True):
        row["gamma"] = tally
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def carries_tally(number: int, of: int, row: Mapping[str, Any]) -> bool:
    """Return whether line `number` (from 1) of a history of `of` lines carries a running gamma."""
    return "validation" in row or number % max(1, of // _TALLIES) == 0 or number == of


def tallies(
    trace: Trace, moments: Sequence[tuple[float, float, int | None]], phases: Collection[Phase], *, cores: int
) -> list[dict[str, float | None]]:
    """Return gamma so far at every moment: (time on the trace's clock, billed seconds and FLOPs until then)."""
    billed = [w for w in trace.windows() if w.phase in phases]
    # Under "train", not "billed": a running value is no total, so the floor does not apply to it.
    spans: dict[SpanKey, list[Window]] = {
        ("train", number): [replace(w, end=replace(w.end, t=min(w.end.t, at))) for w in billed if w.start.t < at]
        for number, (at, _, _) in enumerate(moments, start=1)
    }
    joules = {(r.quantity, r.attempt): r.value for r in (*gpu_readings(trace, spans), *rapl_readings(trace, spans))}
    rss, found = trace.series("rss_bytes"), []
    for (_, number), (_, seconds, flops) in zip(spans, moments, strict=True):
        memory, hours = integral(rss, spans["train", number]), seconds / 3600
        found.append(
            {
                "device_hours": hours,
                "core_hours": hours * cores,
                "rss_gb_hours": None if memory is None else memory[0] / 1e9 / 3600,
                "gpu_energy_joules": joules["gpu_energy_joules", number],
                "cpu_energy_joules": joules["cpu_energy_joules", number],
                "flops": flops,
            }
        )
    return found
