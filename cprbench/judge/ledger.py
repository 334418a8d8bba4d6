"""What runs spent, phase by phase and in all: the ledger of a group's arms, and totals over everything that ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cprbench.judge.cpr import Group, cost_of, of_two_kinds
from cprbench.judge.groups import NOT_MEASURED, Figure, ended_well, mean, runs_by_arm
from cprbench.spec import PHASES, RESOURCES, Phase, RunRecord

#: What totals() adds up: gamma and seconds of the billed phases, and the seconds of all phases, billed or not.
TOTALS = (*RESOURCES, "seconds", "seconds_of_all_phases")
_NO_RUN = "no run ended well"


@dataclass(frozen=True)
class ArmLedger:
    """Of one arm, means over its runs that ended well. A phase that did not take place took 0 s and 0 FLOPs."""

    arm: str
    runs: int  # that ended well
    attempts: int  # of these runs together: above `runs` where one was interrupted and went on
    seconds: dict[Phase, Figure]  # of PHASES, all attempts
    flops: dict[Phase, Figure]  # of PHASES, all attempts, counted
    billed_seconds: Figure  # all attempts
    billed_last_attempt: Figure  # seconds
    trials: int  # of the learning-rate search
    search_seconds: Figure  # billed, all trials of all blocks together


@dataclass(frozen=True)
class Total:
    """A sum over runs; None as soon as one of them was not measured: the rest would pass for all."""

    value: float | None
    measured: int  # runs that have a number
    runs: int
    why: str | None = None


def ledger(group: Group) -> tuple[ArmLedger, ...]:
    """Return what every arm of a group spent by phase, in the order of its arms."""
    runs = runs_by_arm(group.records)
    found = []
    for arm in group.arms:
        own = list(ended_well(runs[arm.arm]).values())
        found.append(
            ArmLedger(
                arm=arm.arm,
                runs=len(own),
                attempts=sum(record.attempts for record in own),
                seconds={phase: _seconds(own, phase) for phase in PHASES},
                flops={phase: _flops(own, phase) for phase in PHASES},
                billed_seconds=_seconds(own, "billed"),
                billed_last_attempt=_seconds(own, "billed_last_attempt"),
                trials=arm.trials,
                search_seconds=arm.search_seconds,
            )
        )
    return tuple(found)


def totals(records: Sequence[RunRecord]) -> dict[str, Total]:
    """Return TOTALS over all these runs: trials of searches, failed runs and earlier attempts are among them.

    Scores that a run took over from an earlier one are billed to both, so they count twice here.
    """
    return {name: _total(records, name) for name in TOTALS}


def _seconds(runs: Sequence[RunRecord], name: str) -> Figure:
    return mean([record.seconds.get(name) for record in runs], NOT_MEASURED if runs else _NO_RUN)


def _flops(runs: Sequence[RunRecord], phase: Phase) -> Figure:
    counts, whys = [], []
    for record in runs:
        readings = [r for r in record.readings if r.quantity == "flops" and r.phase == phase]
        lacking = [str(r.why_missing) for r in readings if r.value is None]
        if not readings and record.seconds.get(phase) != 0:
            lacking = [NOT_MEASURED]
        whys += lacking
        counts.append(None if lacking else float(sum(r.value or 0 for r in readings)))
    return mean(counts, whys[0] if whys else _NO_RUN)


def _total(records: Sequence[RunRecord], name: str) -> Total:
    spent = [_all_phases(r) if name == "seconds_of_all_phases" else cost_of(r, name) for r in records]
    known = [value for value in spent if value is not None]
    why = of_two_kinds(name, records) if len(known) == len(records) else NOT_MEASURED
    why = why if records else "no runs"
    return Total(None if why else sum(known), len(known), len(records), why)


def _all_phases(record: RunRecord) -> float | None:
    spent = [record.seconds.get(phase) for phase in PHASES]
    return None if None in spent else sum(value for value in spent if value is not None)
