"""Runs against earlier runs of the same arms: did psi fall, did a cost rise?

Counted costs are compared exactly, block by block, so they work where clocks are noisy. Psi and measured costs regress
where they are worse both significantly (Holm over all of them) and by more than a margin, hold where the interval
leaves out a loss of the margin, and are open else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cprbench.errors import SpecError, did_you_mean
from cprbench.judge import cpr, statistics
from cprbench.judge.cpr import AXES, COUNTED, Comparison
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import group_key, latest, recipe_of
from cprbench.judge.statistics import Estimate
from cprbench.judge.verdicts import Verdict, unless_damaged
from cprbench.schema import sha256_of
from cprbench.spec import RunRecord

ALPHA = 1 - statistics.LEVEL
PSI = "psi"
#: What is compared unless axes are named; device hours and CO2 follow from seconds and energy.
USUAL = (PSI, "seconds", "energy_kwh", "memory_gb_hours", "peak_memory_bytes", *COUNTED)
#: How much worse is none of anybody's business: psi in points of the score, costs as a share.
MARGINS = {PSI: 0.01, "seconds": 0.1, "energy_kwh": 0.1, "memory_gb_hours": 0.1, "peak_memory_bytes": 0.05}
#: Of what runs of an arm share; hardware may differ where nothing is timed.
_HARDWARE = ("hardware_class", "memory_basis")

_WORSE = "worse by more than the margin"
_Runs = Mapping[int, RunRecord]
_Blocks = dict[int, list[RunRecord]]


@dataclass(frozen=True)
class _Pair:
    """An arm here and in the baseline: block -> run that ended well."""

    name: str
    runs: _Runs
    baseline: _Runs


def regressions(
    evidence: Evidence,
    baseline: Evidence,
    *,
    axes: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """Return a verdict per arm and axis: supported where it holds, refuted where it regressed.

    Axes that neither side measured are left out unless they are named. Raises SpecError for unknown axes and where
    both sides are the same records.
    """
    for axis in (*(axes or ()), *(margins or {})):
        if axis not in (PSI, *AXES):
            raise SpecError(f"unknown axis {axis!r}. {did_you_mean(axis, (PSI, *AXES))}")
    if axis_counted := sorted(set(margins or {}) & set(COUNTED)):
        raise SpecError(f"{axis_counted[0]} is counted and compared exactly, so it has no margin.")
    same = [record.run_id for record in evidence.records if record in baseline.records]
    if same:
        raise SpecError(
            f"run {same[0]} is the same record here and in the baseline: nothing is compared with itself. "
            "Run again with another --out."
        )
    margins = {**MARGINS, **(margins or {})}
    found: list[Verdict] = []
    here, there = _arms(evidence.records), _arms(baseline.records)
    names = [name for name, _ in there.values()]
    for key, (name, earlier) in there.items():
        if names.count(name) > 1:  # under two recipes or limits, say: an id stands for one thing
            name = f"{name} [{key[:8]}]"
        if key not in here:
            found.append(
                _open(name, "could not be measured: no run of this task version, weights, recipe and arm here")
            )
            continue
        if why := _unpaired(here[key][1], earlier):
            found.append(_open(name, f"could not be measured: {why}"))
            continue
        pair = _Pair(name, *({block: runs[0] for block, runs in side.items()} for side in (here[key][1], earlier)))
        for axis in axes or USUAL:
            verdict = _compare(pair, axis, margins.get(axis, 0.1), evidence, baseline, named=axes is not None)
            found += [] if verdict is None else [verdict]
    if not found:
        found.append(_open("baseline", "could not be measured: there are no runs in the baseline"))
    # All that was tested is in the family, not what looks worse alone: that would be choosing before counting.
    adjusted = statistics.holm({str(i): verdict.p for i, verdict in enumerate(found) if verdict.p is not None})
    judged = [_after_holm(verdict, adjusted.get(str(i))) for i, verdict in enumerate(found)]
    return unless_damaged(judged, {**baseline.damaged, **evidence.damaged})


def _arms(records: Iterable[RunRecord]) -> dict[str, tuple[str, _Blocks]]:
    """Return what identifies an arm -> (its name, block -> its runs), failed runs included."""
    found: dict[str, tuple[str, _Blocks]] = {}
    for record in sorted((r for r in latest(records) if r.role != "search"), key=lambda r: (r.block, r.run_id)):
        key = {name: value for name, value in group_key(record).items() if name not in _HARDWARE}
        name = f"{key['task']}/{key['model']}/{record.arm}"
        _, blocks = found.setdefault(sha256_of([key, record.arm, recipe_of(record)]), (name, {}))
        blocks.setdefault(record.block, []).append(record)
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0])))


def _unpaired(here: _Blocks, there: _Blocks) -> str | None:
    """Return why two arms cannot be paired by block."""
    if missing := sorted(set(here) ^ set(there)):
        return f"block {missing[0]} is missing in {'the baseline' if missing[0] in here else 'these runs'}"
    for where, blocks in (("these runs", here), ("the baseline", there)):
        for block, runs in blocks.items():
            if len(runs) > 1:
                return f"{where} have block {block} twice, and nobody may choose between them"
            if runs[0].status != "ok":
                return f"block {block} failed in {where}"
    return None


def _compare(
    pair: _Pair, axis: str, margin: float, evidence: Evidence, baseline: Evidence, *, named: bool
) -> Verdict | None:
    name = f"{pair.name}/{axis}"
    if axis == PSI:
        metric = next(iter(pair.runs.values())).psi.primary
        external = any(record.loop != "cprbench" for record in pair.runs.values())
        return _noisy(name, _psi(pair, metric, evidence, baseline), margin, cost=False, external=external)
    costs = {b: (cpr.cost_of(pair.runs[b], axis), cpr.cost_of(pair.baseline[b], axis)) for b in pair.runs}
    if all(cost is None for both in costs.values() for cost in both) and not named:
        return None
    if any(cost is None for both in costs.values() for cost in both):
        return _open(name, "could not be measured: not measured in every block of both sides")
    known = [(own, before) for own, before in costs.values() if own is not None and before is not None]
    if axis in COUNTED:
        return _exact(name, known)
    classes = {r.environment.hardware_class for runs in (pair.runs, pair.baseline) for r in runs.values()}
    if len(classes) > 1:
        return _open(name, f"could not be measured: hardware classes differ ({'; '.join(sorted(classes))})")
    return _noisy(name, cpr.cost_ratio(pair.runs, pair.baseline, axis), margin, cost=True)


def _psi(pair: _Pair, metric: str, evidence: Evidence, baseline: Evidence) -> Estimate:
    """Return psi here less psi of the baseline, oriented so that more is better."""
    mine = {id(record) for record in pair.runs.values()}

    def predictions(record: RunRecord, when: str) -> Sequence[Mapping[str, Any]]:
        return (evidence if id(record) in mine else baseline).predictions(record, when)

    return Comparison(metric, None, {}, predictions).difference(pair.runs, pair.baseline)


def _exact(name: str, costs: Sequence[tuple[float, float]]) -> Verdict:
    ratios = [own / before if before else float(own == before) or None for own, before in costs]
    more = [i for i, (own, before) in enumerate(costs) if own > before]
    less = any(own < before for own, before in costs)
    own_sum, sum_before = (math.fsum(side) for side in zip(*costs, strict=True))
    value = own_sum / sum_before if sum_before else float(own_sum == 0) or None  # nothing before: the same or no ratio
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = (min(known), max(known)) if len(known) == len(ratios) else (None, None)
    if more:
        own, before = costs[more[0]]
        reason = f"counted: {own:.15g}, and {before:.15g} in the baseline"
    else:
        reason = "counted: less, and in no block more" if less else "counted: the same in every block"
    told = Verdict(name, "refuted" if more else "supported", value, low, high, reason)
    return replace(told, statistic="cost_ratio", threshold="<= 1", blocks=len(costs))


def _noisy(name: str, found: Estimate, margin: float, *, cost: bool, external: bool = False) -> Verdict:
    """Return the verdict of a difference in psi (more is better) or of a ratio of costs (less is)."""
    threshold = f"<= {1 + margin:g}" if cost else f">= -{margin:g}"
    unchanged = found.value == (1.0 if cost else 0.0) and found.why == statistics.ZERO_VARIANCE
    told = Verdict(name, "open", found.value, found.low, found.high, "")
    told = replace(told, statistic="cost_ratio" if cost else "gain_difference", threshold=threshold, blocks=found.n)
    if unchanged:
        return replace(told, verdict="supported", reason="the same in every block")
    if found.value is None or found.low is None or found.high is None:
        return replace(told, reason=f"could not be measured: {found.why}")
    if found.no_items is not None and not external:
        return replace(
            told, reason=f"could not be measured: the error of the test's items is not known ({found.no_items})"
        )
    p = found.p_above(1.0) if cost else found.p_below(0.0)
    told = replace(told, sign_flip_p=found.sign_flip_p, p=None if p is None else min(1.0, 2 * p))
    if found.value > 1 + margin if cost else found.value < -margin:
        return replace(told, reason=_WORSE)
    if found.high < 1 + margin if cost else found.low > -margin:
        return replace(told, verdict="supported", reason="the interval leaves out a loss of the margin")
    return replace(told, reason="the interval holds a loss of the margin: more blocks, or a wider margin")


def _after_holm(verdict: Verdict, p: float | None) -> Verdict:
    """Return a verdict with its adjusted p; what was worse by more than the margin is judged here."""
    if p is None or verdict.reason != _WORSE:
        return replace(verdict, p=p)
    if p < ALPHA:
        return replace(verdict, verdict="refuted", p=p, reason=f"{_WORSE}, p {p:.2g} after Holm")
    return replace(verdict, p=p, reason=f"{_WORSE}, but p {p:.2g} after Holm is not below {ALPHA:.2g}")


def _open(name: str, reason: str) -> Verdict:
    return Verdict(name, "open", None, None, None, reason)
