"""How arms stand against their cost: quadrant, front, cost to a target and the return of the last window."""

from __future__ import annotations

import math

from cprbench.judge.curves import USUAL_TARGET, Curves
from cprbench.judge.frontier import CostToTarget
from cprbench.judge.groups import Figure
from cprbench.render.numbers import number, percent, resource_title


def title(found: Curves) -> str:
    """Return what the table is about."""
    return f"Against billed {resource_title(found.resource)}"


def legend(found: Curves) -> str:
    """Return what the columns mean."""
    target = "no target, for fewer than two arms were validated to the end, or all ended alike"
    if found.target is not None:
        target = (
            f"a validation {found.metric} of {found.target:.3f}, {100 * USUAL_TARGET:.0f} % of the way from the worst "
            "arm's mean last validation to the best one's; a block that never gets there costs without end"
        )
    blocks = ", ".join(map(str, found.front.blocks))
    of = f" Means are over block {blocks}, which these arms have." if found.front.blocks else ""
    drawn = f" The share is of {found.front.resamples} joint draws of blocks." if found.front.frequency else ""
    return (
        f"On the front: no other arm is as cheap and as good.{of}{drawn} Cost to target: {target}. Last window: "
        f"{found.metric} per {resource_title(found.resource)} from the last validation but one to the last, turned so "
        "that more is better; under a decaying learning rate it falls to zero by itself."
    )


def on_front(arm: str, found: Curves) -> str:
    """Return whether an arm is on the front, in how many draws, or why it cannot be."""
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
