"""Does a run that was run again agree with its record? Scores within the error of the items, counts and sets exactly.

What a machine decides (hours, energy, memory) is shown as a ratio within one hardware class and never judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cprbench.judge.groups import NOT_MEASURED
from cprbench.judge.statistics import Scored, gain_covariance
from cprbench.runs.store import PREDICTIONS, Run
from cprbench.schema import sha256_of
from cprbench.spec import RESOURCES, RunRecord, billed_phases

#: Standard errors of the paired difference that a score may be off by.
ERRORS = 2


@dataclass(frozen=True)
class Line:
    """One quantity of both runs. `agrees`: None where it is not judged, with the reason in `why`.

    `difference`: of scores, again less recorded, with what it may be (`allowed`); `ratio`: of costs, again by recorded.
    """

    name: str
    recorded: Any
    again: Any
    agrees: bool | None = None
    difference: float | None = None
    allowed: float | None = None
    ratio: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Agreement:
    """How a run that was run again compares with its record. `same_predictions`: share of the items, final model."""

    run_id: str
    arm: str
    block: int
    hardware: tuple[str, str]
    lines: list[Line]
    same_predictions: float | None
    notes: list[str]

    @property
    def differs(self) -> list[str]:
        """The names of what does not agree."""
        return [line.name for line in self.lines if line.agrees is False]

    @property
    def verdict(self) -> str:
        """`reproduced`, or `differs: …` with what does."""
        return f"differs: {', '.join(self.differs)}" if self.differs else "reproduced"


def agreement(recorded: Run, again: Run) -> Agreement:
    """Return how `again` compares with `recorded`, two runs of one spec and block."""
    one, other = recorded.record, again.record
    same, notes = _same_predictions(recorded, again), _notes(one, other)
    lines = [Line("status", one.status, other.status, one.status == other.status)]
    if other.status != "ok":
        notes.append(f"the run that was made now ended as {other.status}: {other.error}")
    else:
        lines += [_score(recorded, again, when) for when in ("base", "final")]
        lines += [_exact(name, *map(of, (one, other))) for name, of in _COUNTS.items()]
        lines += [_cost(resource, one, other) for resource in RESOURCES if resource != "flops"]
    classes = one.environment.hardware_class, other.environment.hardware_class
    return Agreement(one.run_id, one.arm, one.block, classes, lines, same, notes)


def _flops(record: RunRecord) -> int | None:
    """Return what the last attempt billed: another one before it is no part of what is run again."""
    if record.attempts == 1 or record.gamma.flops is None:
        return record.gamma.flops
    phases = billed_phases(record.spec.stop)
    own = [
        reading.value
        for reading in record.readings
        if (reading.quantity, reading.attempt) == ("flops", record.attempts) and reading.phase in phases
    ]
    known = [round(value) for value in own if value is not None]
    return sum(known) if own and len(known) == len(own) else None


#: What must be equal: what was counted, and which sets were taken.
_COUNTS: dict[str, Callable[[RunRecord], Any]] = {
    "FLOPs": _flops,
    "test items": lambda run: run.psi.items,
    "steps": lambda run: run.notes.get("steps"),
    "selected examples": lambda run: run.selected_examples,
    "trained parameters": lambda run: run.trained_parameters,
    "all parameters": lambda run: run.total_parameters,
    "parameters of a new head": lambda run: run.new_head_parameters,
    "optimizer bytes": lambda run: run.optimizer_state_bytes,
    "submodules": lambda run: sha256_of(sorted(run.trained_submodules)),
    "selection": lambda run: run.selection_sha256,
    "batches": lambda run: run.batches_sha256,
}


def _exact(name: str, recorded: Any, again: Any) -> Line:
    if recorded is None and again is None:
        return Line(name, None, None, why="told by neither")
    return Line(name, recorded, again, recorded == again)


def _cost(resource: str, one: RunRecord, other: RunRecord) -> Line:
    recorded, again = getattr(one.gamma, resource), getattr(other.gamma, resource)
    why = None
    if recorded is None or again is None:
        why = NOT_MEASURED
    elif one.environment.hardware_class != other.environment.hardware_class:
        why = "other hardware"
    elif resource == "memory_gb_hours" and one.gamma.memory_basis != other.gamma.memory_basis:
        why = f"{one.gamma.memory_basis} then, {other.gamma.memory_basis} now"
    elif resource in ("energy_kwh", "co2_kg") and one.gamma.energy_scope != other.gamma.energy_scope:
        why = f"{one.gamma.energy_scope} then, {other.gamma.energy_scope} now"
    elif not recorded:
        why = "nothing was recorded"
    return Line(resource, recorded, again, ratio=None if why else again / recorded, why=why)


def _score(recorded: Run, again: Run, when: str) -> Line:
    metric = recorded.record.psi.primary
    name, file = f"{metric} {'before' if when == 'base' else 'after'}", _file(when)
    then, now = ((getattr(run.record.psi, when) or {}).get(metric) for run in (recorded, again))
    if then is None or now is None:
        return Line(name, then, now, agrees=False, why="not scored")
    difference = now - then
    scored = [Scored(metric, run.lines(file), run.record.psi.items) for run in (again, recorded)]
    error = gain_covariance(metric, [(scored[0], scored[1])])
    if error.variance is None:
        return Line(name, then, now, agrees=False, difference=difference, why=error.why)
    allowed = ERRORS * math.sqrt(error.variance)
    # A mean of thousands of items differs from itself in the last digits, in another order.
    agrees = abs(difference) <= allowed + 1e-9 * max(1.0, abs(then))
    return Line(name, then, now, agrees=agrees, difference=difference, allowed=allowed)


def _file(when: str) -> str:
    return PREDICTIONS if when == "final" else f"base_{PREDICTIONS}"


def _same_predictions(recorded: Run, again: Run) -> float | None:
    """Return the share of items with the same prediction; None where nothing is predicted (texts)."""
    one, other = ({row["id"]: row["prediction"] for row in run.lines(PREDICTIONS)} for run in (recorded, again))
    if not any(one.values()) or one.keys() != other.keys():
        return None
    return sum(bool(one[item] == other[item]) for item in one) / len(one)


def _notes(one: RunRecord, other: RunRecord) -> list[str]:
    then, now = (r.environment.packages | {"python": r.environment.python} for r in (one, other))
    changed = [
        f"{name} {then.get(name) or 'none'} then, {now.get(name) or 'none'} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    notes = [f"recorded with other versions: {'; '.join(changed)}"] if changed else []
    if one.attempts != other.attempts:
        notes.append(f"hours, energy and memory are of {one.attempts} attempts then and {other.attempts} now")
    for end in (one.spec.budget, one.spec.stop):
        if end is not None and end.resource != "flops":
            notes.append(f"it ends by {end.resource}, so how far it gets is up to the machine")
    return notes
