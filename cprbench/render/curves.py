"""How arms stand against their cost: quadrant, front, cost to a target and the return of the last window."""

from __future__ import annotations

import math

from cprbench.judge.cpr import Group
from cprbench.judge.curves import USUAL_TARGET, Curves
from cprbench.judge.frontier import CostToTarget
from cprbench.judge.groups import Figure
from cprbench.render.numbers import number, percent, resource_title, with_interval

COLUMNS = ("arm", "against full", "on the front", "cost to target", "last window")


def rows(group: Group, found: Curves) -> list[list[str]]:
    """Return a row of COLUMNS per arm."""
    return [
        [
            arm.arm,
            "full itself" if arm.arm == "full" else arm.quadrant[found.resource],
            _on_front(arm.arm, found),
            _reached(found.cost_to_target.get(arm.arm)),
            with_interval(number, found.last_window_ratio[arm.arm]),
        ]
        for arm in group.arms
        if arm.arm in found.last_window_ratio
    ]


def title(found: Curves) -> str:
    """Return what the table is about."""
    return f"Against billed {resource_title(found.resource)}"


def legend(found: Curves) -> str:
    """Return what the columns mean."""
    target = "no target: fewer than two arms were validated"
    if found.target is not None:
        target = (
            f"target: a validation {found.metric} of {found.target:.3f}, {100 * USUAL_TARGET:.0f} % of the way from "
            "the worst arm's mean last validation to the best one's; a block that never gets there costs without end"
        )
    unit = resource_title(found.resource)
    return (
        f"On the front: no other arm is as cheap and as good; the share is of {found.front.resamples} joint draws of "
        f"blocks. Cost to {target}. Last window: {found.metric} per {unit} from the last validation but one to the "
        "last, turned so that more is better; under a decaying learning rate it falls to zero by itself."
    )


def _on_front(arm: str, found: Curves) -> str:
    if arm in found.front.off:
        return f"no: {found.front.off[arm]}"
    share = found.front.frequency.get(arm)
    told = "" if share is None else f", {percent(Figure(share))} of draws"
    return ("yes" if arm in found.front.arms else "no") + told


def _reached(found: CostToTarget | None) -> str:
    if found is None or found.median is None:
        return "n/e" if found is None else found.why or "not measured"
    missed = f" ({found.missed} of {len(found.by_block)} blocks missed)" if found.missed else ""
    return ("not reached" if math.isinf(found.median) else number(Figure(found.median))) + missed
