"""How arms stand against their cost (quadrant, front), and what their validations say while they train."""

from __future__ import annotations

import math

from cprbench.judge.cpr import Group
from cprbench.judge.curves import USUAL_TARGET, Curves
from cprbench.judge.frontier import CostToTarget
from cprbench.judge.groups import Figure
from cprbench.render.document import Cell, Table
from cprbench.render.numbers import number, percent, resource_title
from cprbench.render.report.comparison import interval


def front_table(group: Group, found: Curves) -> Table:
    """Return the quadrant of each arm against full, and whether it is on the front."""
    blocks = ", ".join(map(str, found.front.blocks))
    of = f" Means are over block {blocks}, which these arms have." if found.front.blocks else ""
    drawn = f" The share is of {found.front.resamples} joint draws of blocks." if found.front.frequency else ""
    return Table(
        "front",
        f"Against billed {resource_title(found.resource)}",
        ("arm", "against full", "on the front"),
        tuple(
            (
                Cell(arm.arm),
                Cell("full itself" if arm.arm == "full" else arm.quadrant[found.resource]),
                Cell(_on_front(arm.arm, found), found.front.frequency.get(arm.arm)),
            )
            for arm in group.arms
        ),
        (f"On the front: no other arm is as cheap and as good.{of}{drawn}",),
        words=(0, 1, 2),
    )


def running_table(group: Group, found: Curves) -> Table:
    """Return what it cost to reach a validation score, and what the last window returned."""
    unit = resource_title(found.resource)
    target = "no target, for fewer than two arms were validated to the end, or all ended alike"
    if found.target is not None:
        target = (
            f"a validation {found.metric} of {found.target:.3f}, {100 * USUAL_TARGET:.0f} % of the way from the worst "
            "arm's mean last validation to the best one's; a block that never gets there costs without end"
        )
    rows = []
    for arm in group.arms:
        cost = found.cost_to_target.get(arm.arm)
        median = None if cost is None or cost.median is None or math.isinf(cost.median) else cost.median
        rows.append((Cell(arm.arm), Cell(reached(cost), median), interval(number, found.last_window_ratio[arm.arm])))
    return Table(
        "running",
        f"Validation {found.metric} against billed {unit}",
        ("arm", "cost to target", "last window"),
        tuple(rows),
        (
            f"Cost to target: {target}.",
            f"Last window: {found.metric} per {unit} from the last validation but one to the last, turned so that more "
            "is better; under a decaying learning rate it falls to zero by itself.",
        ),
    )


def _on_front(arm: str, found: Curves) -> str:
    if arm in found.front.off:
        return f"no: {found.front.off[arm]}"
    share = found.front.frequency.get(arm)
    told = "" if share is None else f", {percent(Figure(share))} of draws"
    return ("yes" if arm in found.front.arms else "no") + told


def reached(found: CostToTarget | None) -> str:
    """Return what reaching the target cost, or why there is no number."""
    if found is None or found.median is None:
        return "n/e" if found is None else found.why or "not measured"
    missed = f" ({found.missed} of {len(found.by_block)} blocks missed)" if found.missed else ""
    return ("not reached" if math.isinf(found.median) else number(Figure(found.median))) + missed
