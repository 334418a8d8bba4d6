"""Runs against earlier runs of the same arms: did psi fall, did a cost rise?

Counted costs are compared exactly, block by block, so they work where clocks are noisy. Psi and measured costs regress
where they are worse both significantly (Holm over all of them) and by more than a margin, hold where the interval
leaves out a loss of the margin, and are open else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cprbench.errors import SpecError, did_you_mean
from cprbench.judge import cpr, statistics
from cprbench.judge.cpr import AXES, COUNTED, Comparison
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import ended_well, group_key, latest, runs_by_arm
from cprbench.judge.statistics import Estimate
from cprbench.judge.verdicts import Verdict
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

_Runs = Mapping[int, RunRecord]


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
    found, p_values = [], {}
    here, there = _arms(evidence.records), _arms(baseline.records)
    for key, (name, earlier) in there.items():
        if key not in here:
            found.append(
                _open(name, "could not be measured: no run of this task version, weights, recipe and arm here")
            )
            continue
        pair = _Pair(name, here[key][1], earlier)
        if why := _unpaired(pair):
            found.append(_open(name, f"could not be measured: {why}"))
            continue
        for axis in axes or USUAL:
            verdict = _compare(pair, axis, margins.get(axis, 0.1), evidence, baseline, named=axes is not None)
            if verdict is not None:
                found.append(verdict)
                if verdict.p is not None:
                    p_values[verdict.id] = verdict.p
    if not found:
        found.append(_open("baseline", "could not be measured: there are no runs in the baseline"))
    adjusted = statistics.holm(p_values)
    return [_after_holm(verdict, adjusted.get(verdict.id)) for verdict in found]


def _arms(records: Iterable[RunRecord]) -> dict[str, tuple[str, dict[int, RunRecord]]]:
    """Return what identifies an arm -> (its name, block -> run), failed runs included."""
    classes: dict[str, tuple[dict[str, Any], list[RunRecord]]] = {}
    for record in latest(r for r in records if r.role != "search"):
        key = {name: value for name, value in group_key(record).items() if name not in _HARDWARE}
        classes.setdefault(sha256_of(key), (key, []))[1].append(record)
    found = {}
    for digest, (key, members) in sorted(
        classes.items(), key=lambda item: (item[1][0]["task"], item[1][0]["model"], item[0])
    ):
        for arm, runs in sorted(runs_by_arm(members).items()):
            found[f"{digest} {arm}"] = (f"{key['task']}/{key['model']}/{arm}", dict(sorted(runs.items())))
    return found


def _unpaired(pair: _Pair) -> str | None:
    """Return why two arms cannot be paired by block."""
    if missing := sorted(set(pair.runs) ^ set(pair.baseline)):
        side = "the baseline" if missing[0] in pair.runs else "these runs"
        return f"block {missing[0]} is missing in {side}"
    for where, runs in (("these runs", pair.runs), ("the baseline", pair.baseline)):
        if failed := sorted(set(runs) - set(ended_well(runs))):
            return f"block {failed[0]} failed in {where}"
    return None


def _compare(
    pair: _Pair, axis: str, margin: float, evidence: Evidence, baseline: Evidence, *, named: bool
) -> Verdict | None:
    name = f"{pair.name}/{axis}"
    if axis == PSI:
        metric = next(iter(pair.runs.values())).psi.primary
        return _noisy(name, _psi(pair, metric, evidence, baseline), margin, cost=False)
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
    value = sum(own for own, _ in costs) / total if (total := sum(before for _, before in costs)) else None
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = (min(known), max(known)) if len(known) == len(ratios) else (None, None)
    if more:
        own, before = costs[more[0]]
        reason = f"counted: {own:.15g}, and {before:.15g} in the baseline"
    else:
        reason = "counted: less, and in no block more" if less else "counted: the same in every block"
    told = Verdict(name, "refuted" if more else "supported", value, low, high, reason)
    return replace(told, statistic="cost_ratio", threshold="<= 1", blocks=len(costs))


def _noisy(name: str, found: Estimate, margin: float, *, cost: bool) -> Verdict:
    """Return the verdict of a difference in psi (more is better) or of a ratio of costs (less is)."""
    threshold = f"<= {1 + margin:g}" if cost else f">= -{margin:g}"
    unchanged = found.value == (1.0 if cost else 0.0) and found.why == statistics.ZERO_VARIANCE
    told = Verdict(name, "open", found.value, found.low, found.high, "")
    told = replace(told, statistic="cost_ratio" if cost else "gain_difference", threshold=threshold, blocks=found.n)
    if unchanged:
        return replace(told, verdict="supported", reason="the same in every block")
    if found.value is None or found.low is None or found.high is None:
        return replace(told, reason=f"could not be measured: {found.why}")
    told = replace(told, sign_flip_p=found.sign_flip_p)
    worse_than_margin = found.value > 1 + margin if cost else found.value < -margin
    if worse_than_margin:
        p = found.p_above(1.0) if cost else found.p_below(0.0)
        return replace(told, p=None if p is None else min(1.0, 2 * p), reason="worse by more than the margin")
    if found.high < 1 + margin if cost else found.low > -margin:
        return replace(told, verdict="supported", reason="the interval leaves out a loss of the margin")
    return replace(told, reason="the interval holds a loss of the margin: more blocks, or a wider margin")


def _after_holm(verdict: Verdict, p: float | None) -> Verdict:
    """Return a verdict with its adjusted p; what was worse by more than the margin is judged here."""
    if p is None:
        return verdict
    if p < ALPHA:
        return replace(verdict, verdict="refuted", p=p, reason=f"{verdict.reason}, p {p:.2g} after Holm")
    return replace(verdict, p=p, reason=f"{verdict.reason}, but p {p:.2g} after Holm is not below {ALPHA:.2g}")


def _open(name: str, reason: str) -> Verdict:
    return Verdict(name, "open", None, None, None, reason)
