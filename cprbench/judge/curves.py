"""What the validation grid of runs says: the return of the last window, what a target cost, and who is on the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprbench.judge import frontier
from cprbench.judge.cpr import Group, cost_of
from cprbench.judge.evidence import Evidence
from cprbench.judge.frontier import CostToTarget, Front, Point
from cprbench.judge.groups import ended_well, runs_by_arm, score_of
from cprbench.judge.statistics import Estimate, mean_difference
from cprbench.schema import MOST
from cprbench.spec import RunRecord, falls

#: Of the way from the worst to the best arm's last validation: what "reaching the target" means unless it is named.
USUAL_TARGET = 0.9
#: running gamma's names in history.jsonl, where they are not gamma's own.
_RUNNING = {"memory_gb_hours": "rss_gb_hours"}


@dataclass(frozen=True)
class Curves:
    """Of one group and one resource, by arm. `target` is a validation score in the metric's own sign."""

    resource: str
    metric: str
    target: float | None
    last_window_ratio: dict[str, Estimate]  # psi per unit of the resource, from one validation to the next
    cost_to_target: dict[str, CostToTarget]
    front: Front  # of test psi against the resource


def curves(group: Group, evidence: Evidence, resource: str = "flops", target: float | None = None) -> Curves:
    """Return what the histories of a group's runs say, oriented so that higher is better.

    `target`: a validation score; by default USUAL_TARGET of the way from the least to the best mean of the arms' last
    validations, so it is relative to who takes part.
    """
    runs = {name: ended_well(of) for name, of in runs_by_arm(group.records).items()}
    sign = -1.0 if falls(group.metric) else 1.0
    found = {
        name: {block: curve(evidence.validations(r), group.metric, resource) for block, r in of.items()}
        for name, of in runs.items()
    }
    wanted = _target(found) if target is None else sign * target
    points = {
        name: {block: _point(record, group.metric, resource, sign) for block, record in of.items()}
        for name, of in runs.items()
    }
    return Curves(
        resource=resource,
        metric=group.metric,
        target=None if wanted is None else sign * wanted,
        last_window_ratio={name: _last(by_block) for name, by_block in found.items()},
        cost_to_target={n: frontier.cost_to_target(c, wanted) for n, c in found.items()} if wanted is not None else {},
        front=frontier.front(points, {arm.arm: arm.floor for arm in group.arms}),
    )


def curve(rows: Sequence[Mapping[str, Any]], metric: str, resource: str) -> list[Point]:
    """Return (billed so far, validation psi) at every validation of a history; None for what a row does not hold."""
    points: list[Point] = []
    for row in rows:
        scores, spent = row.get("validation"), row.get("gamma")
        if isinstance(scores, dict):
            cost = spent.get(_RUNNING.get(resource, resource)) if isinstance(spent, dict) else None
            psi = _number(scores.get(metric))
            psi = None if psi is None else psi * (-1.0 if falls(metric) else 1.0)
            points.append((_number(row.get(resource) if cost is None else cost), psi))
    return points


def _number(value: Any) -> float | None:
    """Return a number of a history, None for what is none: the file may not be ours."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST:
        return None
    return float(value) if math.isfinite(value) else None


def _target(found: Mapping[str, Mapping[int, Sequence[Point]]]) -> float | None:
    """Return the usual target, None where fewer than two arms were validated to the end."""
    ends = []
    for by_block in found.values():
        last = [points[-1][1] for points in by_block.values() if points]
        known = [psi for psi in last if psi is not None]
        if known and len(known) == len(by_block):
            ends.append(sum(known) / len(known))
    return min(ends) + USUAL_TARGET * (max(ends) - min(ends)) if len(ends) > 1 and max(ends) > min(ends) else None


def _last(by_block: Mapping[int, Sequence[Point]]) -> Estimate:
    """Return the mean over blocks of the last window's ratio."""
    ratios = [frontier.last_window_ratio(points, 1) for points in by_block.values()]
    values = [ratio.value for ratio in ratios if ratio.value is not None]
    if len(values) < len(ratios) or not values:
        whys = [ratio.why for ratio in ratios if ratio.value is None]
        return Estimate(None, why=whys[0] if whys else "no run ended well")
    return mean_difference(values)


def _point(record: RunRecord, metric: str, resource: str, sign: float) -> Point:
    score = score_of(record, metric, "final")
    return cost_of(record, resource), None if score is None else sign * score
