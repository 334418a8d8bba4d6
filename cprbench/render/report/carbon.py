"""The compute and carbon statement that conferences ask for: which machines, how long per run and in all, how much was
spent on runs that no table shows, and on which grid. What was not measured is named, never added up."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cprbench.judge.groups import NOT_MEASURED, Figure, mean
from cprbench.judge.ledger import Total, totals
from cprbench.render.document import Prose
from cprbench.render.numbers import missing_resources, number, resource_title
from cprbench.schema import Amount
from cprbench.spec import RESOURCES, RunRecord

#: More reasons than these are counted, not told.
_REASONS = 3
_PLACE = re.compile(r"annual average of [A-Z]{3} \((.+)\)$")
_BILLED = (
    "Billed are the phases select and train of all attempts, and validation where a run acts on it; setup and scoring "
    "are in the time of all phases alone."
)
_CACHED = "Scores that a run took over from an earlier one are billed to both, so these sums count them twice."
_REST = "Storage, and experiments of which no record is here, are not counted."


class Grid(BaseModel):
    """What turned kWh into CO2, as records keep it (environment.facts.carbon)."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    intensity_g_per_kwh: Amount
    source: str
    year: int | None = None
    pue: Annotated[float, Field(ge=1)] = 1.0

    @property
    def place(self) -> str | None:
        """The country whose average it is; None where a number was given without one."""
        found = _PLACE.search(self.source)
        return None if found is None else found[1]

    @property
    def words(self) -> str:
        """What a reader needs to check it."""
        intensity, pue = number(Figure(self.intensity_g_per_kwh), 4), number(Figure(self.pue))
        year = "" if self.year is None else f", {self.year}"
        return f"{intensity} g CO2 per kWh ({self.source}{year}), PUE {pue}"


def grids(records: Sequence[RunRecord]) -> tuple[Grid, ...]:
    """Return the grids that these runs name, each once; what is no grid is not told: facts are free tables."""
    found = set()
    for record in records:
        with suppress(ValidationError):
            found.add(Grid.model_validate(record.environment.facts.get("carbon")))
    return tuple(sorted(found, key=lambda grid: (grid.source, grid.intensity_g_per_kwh, grid.pue, grid.year or 0)))


def statement(records: Sequence[RunRecord]) -> Prose:
    """Return the statement over all these runs, a paragraph per hardware class: classes are never added up.

    `records`: all that ran, trials of a search and failed runs among them.
    """
    classes: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        classes[record.environment.hardware_class].append(record)
    if not classes:
        return Prose(("There are no runs to report.",))
    cached = any("cached" in r.flags for record in records for r in record.readings)
    paragraphs = [" ".join(_of_class(name, classes[name])) for name in sorted(classes)]
    return Prose((*paragraphs, " ".join([_BILLED, *([_CACHED] if cached else []), _REST])))


def _of_class(name: str, runs: Sequence[RunRecord]) -> list[str]:
    found = totals(runs)
    known = [resource for resource in RESOURCES if found[resource].value is not None]
    spent = ", ".join(f"{number(Figure(found[resource].value))} {resource_title(resource)}" for resource in known)
    return [
        f"{_counted(len(runs), 'run')} on {name}{_machine(runs)}.",
        *_unseen(runs),
        _time(runs, found),
        *([f"Billed in all: {spent}."] if known else []),
        *([peaks] if (peaks := _peaks(runs)) else []),
        *([_carbon(runs)] if "co2_kg" in known else []),
        *(_no_sum(runs, resource, found[resource]) for resource in RESOURCES if resource not in known),
    ]


def _machine(runs: Sequence[RunRecord]) -> str:
    facts = [record.environment.facts for record in runs]
    cpus = sorted({fact["cpu"] for fact in facts if isinstance(fact.get("cpu"), str)})
    bytes_ = [_amount(fact.get("memory_bytes")) for fact in facts]
    sizes = sorted({number(Figure(size / 1e9)) for size in bytes_ if size is not None})
    told = [" or ".join(cpus)] * bool(cpus) + [f"{' or '.join(sizes)} GB of main memory"] * bool(sizes)
    return f" ({', '.join(told)})" if told else ""


def _amount(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _unseen(runs: Sequence[RunRecord]) -> list[str]:
    """Return what these sums hold that no table of results shows."""
    trials = sum(record.role == "search" for record in runs)
    failed = sum(record.status != "ok" for record in runs)
    again = sum(record.attempts - 1 for record in runs)
    parts = [_counted(trials, "trial of a learning-rate search", "trials of learning-rate searches")] * bool(trials)
    parts += [_counted(failed, "run that did not end well", "runs that did not end well")] * bool(failed)
    parts += [_counted(again, "attempt before the last one", "attempts before the last one")] * bool(again)
    return [f"Among them: {', '.join(parts)}."] if parts else []


def _time(runs: Sequence[RunRecord], found: Mapping[str, Total]) -> str:
    billed, whole = found["seconds"], found["seconds_of_all_phases"]
    told = []
    if billed.value is None:
        told.append(f"Billed time has no sum: it was measured in {billed.measured} of {len(runs)} runs.")
    else:
        each = [record.seconds["billed"] or 0.0 for record in runs]
        ends = f" on average, {number(Figure(min(each)))} to {number(Figure(max(each)))} s" if len(runs) > 1 else ""
        hours = number(Figure(billed.value / 3600))
        told.append(f"A run billed {number(mean(each, NOT_MEASURED))} s{ends}; all together {hours} h.")
    if whole.value is None:
        told.append(f"The time of all phases has no sum: it was measured in {whole.measured} of {len(runs)} runs.")
    else:
        told.append(f"All phases, billed or not, took {number(Figure(whole.value / 3600))} h.")
    return " ".join(told)


def _peaks(runs: Sequence[RunRecord]) -> str:
    """Return the largest peak of each kind of memory: a device's and a process's are two things."""
    found: dict[str, list[int]] = defaultdict(list)
    for record in runs:
        if record.peak_memory_bytes is not None:
            found[str(record.gamma.memory_basis or "not told")].append(record.peak_memory_bytes)
    told = (f"{number(Figure(max(found[kind]) / 1e9))} GB ({kind})" for kind in sorted(found))
    return f"The largest peak of memory was {', '.join(told)}." if found else ""


def _no_sum(runs: Sequence[RunRecord], resource: str, total: Total) -> str:
    if total.measured == total.runs:
        return f"{resource_title(resource)}: no sum ({total.why})."
    missing = (missing_resources(record) for record in runs)
    whys = sorted({why[resource] for why in missing if resource in why})
    more = f"; {len(whys) - _REASONS} more reasons" if len(whys) > _REASONS else ""
    known = f"measured in {total.measured} of {total.runs} runs, so no sum" if total.measured else "not measured"
    return f"{resource_title(resource)}: {known} ({'; '.join(whys[:_REASONS])}{more})."


def _carbon(runs: Sequence[RunRecord]) -> str:
    scopes = sorted({str(record.gamma.energy_scope) for record in runs})
    named = grids(runs)
    factors = "; or ".join(grid.words for grid in named) or "the record does not tell its factors"
    return f"CO2 is energy ({', '.join(scopes)}) x {factors}."


def _counted(number_of: int, one: str, many: str | None = None) -> str:
    return f"{number_of} {one if number_of == 1 else many or f'{one}s'}"
