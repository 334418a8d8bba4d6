"""Submissions beside one another: which rows somebody else reproduced, and which share their raw samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cprbench.judge.submission import Row, RunLine


def beside_one_another(rows: Mapping[str, Sequence[Row]], authors: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """Return the rows of every submission, as they are beside the others.

    Runs have the same id wherever they run. A consistent row is reproduced where a submission without any of its
    authors holds the same runs, consistent and with raw samples of its own, with the same FLOPs, and where no run's psi
    is further off than two standard errors of its items. Rows with the raw samples of another submission's do not rank:
    one of them is a copy, and which one is not for a program to say.
    """
    # Copies are of one trace: among many submissions of one suite they are looked at once.
    by_runs: dict[tuple[str, ...], dict[frozenset[str], list[tuple[str, Row]]]] = {}
    for name, own in rows.items():
        for row in own:
            alike = by_runs.setdefault(tuple(sorted(run.run_id for run in row.runs)), {})
            alike.setdefault(_traces(row), []).append((name, row))

    holders: dict[str, set[str]] = {}
    for name, own in rows.items():
        for trace in {trace for row in own for trace in _traces(row)}:
            holders.setdefault(trace, set()).add(name)
    names = {name: {" ".join(author.split()).casefold() for author in own} for name, own in authors.items()}

    def settled(name: str, row: Row) -> Row:
        others = sorted({other for trace in _traces(row) for other in holders[trace]} - {name})
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            why = f"its raw samples are those of submission {others[0]}{more}: one of them is a copy"
            return row.model_copy(update={"unranked": [*row.unranked, why]})
        if row.tier == "consistent" and confirmed(name, row):
            return row.model_copy(update={"tier": "reproduced"})
        return row

    def confirmed(name: str, row: Row) -> bool:
        traces, mine = _traces(row), names[name]
        return any(
            _agree(row, other) and mine.isdisjoint(names[by])
            for theirs, found in by_runs[tuple(sorted(run.run_id for run in row.runs))].items()
            if traces.isdisjoint(theirs)
            for by, other in found
        )

    return {name: [settled(name, row) for row in own] for name, own in rows.items()}


def _traces(row: Row) -> frozenset[str]:
    return frozenset(run.trace_sha256 for run in row.runs if run.trace_sha256)


def _agree(one: Row, other: Row) -> bool:
    pairs = list(zip(*(sorted(row.runs, key=lambda run: run.run_id) for row in (one, other)), strict=True))
    return other.tier != "self-reported" and all(
        a.status == b.status
        and a.gamma.get("flops") == b.gamma.get("flops")
        and a.gamma.get("device_hours") != b.gamma.get("device_hours")  # to the last digit: one run, told twice
        and _close(a, b)
        for a, b in pairs
    )


def _close(one: RunLine, other: RunLine) -> bool:
    """Return whether psi differs by no more than two standard errors of the items, of whichever run has the larger."""
    if one.psi is None or other.psi is None or one.item_variance is None or other.item_variance is None:
        return one.psi is None and other.psi is None
    return abs(one.psi - other.psi) <= 2 * math.sqrt(max(one.item_variance, other.item_variance))
