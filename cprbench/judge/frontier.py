"""Capability against cost: quadrants, the Pareto front, cost to a target, the return of the last window.

Costs are one resource of gamma; psi and gains are turned so that higher is better. A run that does next to nothing has
the best ratio of all, so nothing dominates and nothing is on a front unless its own gain is above the caller's
capability floor.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cprbench.judge.statistics import LEAST_FOR_INTERVAL, RESAMPLES, SEED, TOO_FEW, Estimate

Quadrant = Literal["dominates", "dominated", "trade-off", "indistinguishable"]
Axis = Literal["better", "worse", "equal", "unknown"]
Point = tuple[float | None, float | None]  # (cost, psi)

BELOW_FLOOR = "below the capability floor"


@dataclass(frozen=True)
class Placed:
    """Where an arm stands against another one; None with the reason."""

    value: Quadrant | None
    why: str | None = None


@dataclass(frozen=True)
class Front:
    """The arms that no other arm beats on both axes, and how sure that is."""

    arms: tuple[str, ...]  # of the means over `blocks`, in the order given
    frequency: dict[str, float]  # share of resamples of the blocks in which an arm is on the front; empty with `why`
    off: dict[str, str]  # arms that cannot be on it, with the reason
    blocks: tuple[int, ...]  # that all arms but these have
    why: str | None = None
    points: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean (cost, psi) of its arms over `blocks`
    resamples: int = RESAMPLES
    seed: int = SEED


@dataclass(frozen=True)
class CostToTarget:
    """What it cost to reach a validation psi: infinite for blocks that never did."""

    target: float
    median: float | None  # math.inf: not reached in half of the blocks or more
    by_block: dict[int, float]
    missed: int
    why: str | None = None


def quadrant(
    difference: Estimate, costs: Estimate, *, above_floor: bool, margin: float = 0.0, cost_margin: float = 0.0
) -> Placed:
    """Return where an arm stands by the intervals of its psi difference and of its cost ratio to another arm.

    An axis is equal where its whole interval is within the margin (psi: +-margin; cost: a factor of 1 + cost_margin);
    else better or worse where the interval leaves out 0 (cost: 1); else unknown. Better on one axis and better or
    equal on the other dominates, and the mirror image is dominated; better on one and worse on the other is a
    trade-off; all else cannot be told apart, and `why` names the unknown axes. An arm that is not `above_floor`
    dominates nothing.
    """
    if difference.low is None or difference.high is None:
        return Placed(None, f"psi: {difference.why}")
    if costs.low is None or costs.high is None:
        return Placed(None, f"cost: {costs.why}")
    psi = _axis(difference.low, difference.high, margin)
    cost = _axis(-math.log(costs.high), -math.log(costs.low), math.log1p(cost_margin))
    if {psi, cost} == {"better", "worse"}:
        return Placed("trade-off")
    if "unknown" in (psi, cost) or psi == cost == "equal":
        unknown = [name for name, axis in (("psi", psi), ("cost", cost)) if axis == "unknown"]
        return Placed("indistinguishable", " and ".join(unknown) + " not told apart" if unknown else "equal on both")
    if "worse" in (psi, cost):
        return Placed("dominated")
    return Placed("dominates") if above_floor else Placed("indistinguishable", BELOW_FLOOR)


def _axis(low: float, high: float, margin: float) -> Axis:
    if -margin <= low and high <= margin:
        return "equal"
    return "better" if low > 0 else "worse" if high < 0 else "unknown"


def pareto(points: Mapping[str, Point]) -> tuple[str, ...]:
    """Return the names of points that no other beats: none is as cheap and as good, and better in one of the two.

    Points that lack a value, or have one that is not finite, are left out. Equal points are on the front together.
    """
    known = {n: (c, p) for n, (c, p) in points.items() if c is not None and p is not None and math.isfinite(c + p)}
    return tuple(
        name
        for name, (cost, psi) in known.items()
        if not any(c <= cost and p >= psi and (c, p) != (cost, psi) for c, p in known.values())
    )


def front(points: Mapping[str, Mapping[int, Point]], floors: Mapping[str, str | None]) -> Front:
    """Return the front of the block means (arm -> block -> point) and each arm's share of fronts over resampled blocks.

    Arms that have a reason in `floors`, were not measured in every block, or lack a block that most arms have, are off
    the front and beat no other. Blocks are drawn jointly: a resample takes the same blocks of all arms, from those that
    all of them have.
    """
    import numpy as np

    off = {arm: str(why) for arm, why in floors.items() if why is not None and arm in points}
    for arm, by_block in points.items():
        if arm not in off and not all(pareto({"": point}) for point in by_block.values()):
            off[arm] = "not measured in every block"
    counts = Counter(block for arm, by_block in points.items() if arm not in off for block in by_block)
    usual = {block for block, arms in counts.items() if 2 * arms > len(points) - len(off)}
    for arm, by_block in points.items():
        if arm not in off and (lacking := sorted(usual - set(by_block))):
            off[arm] = f"no run in block {', '.join(map(str, lacking))}"
    able = [arm for arm in points if arm not in off]
    blocks = tuple(sorted(set.intersection(*(set(points[arm]) for arm in able)))) if able else ()
    if not blocks:
        return Front((), {}, off, (), "no block that all arms have" if able else "no arm that can be on it")
    table = np.array([[points[arm][block] for block in blocks] for arm in able], dtype=np.float64)  # arm, block, axis

    def on(means: np.ndarray) -> tuple[str, ...]:
        return pareto({arm: (float(c), float(p)) for arm, (c, p) in zip(able, means, strict=True)})

    arms = on(table.mean(axis=1))
    found = {arm: (float(c), float(p)) for arm, (c, p) in zip(able, table.mean(axis=1), strict=True) if arm in arms}
    if len(blocks) < LEAST_FOR_INTERVAL:
        return Front(arms, {}, off, blocks, TOO_FEW, found)
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn_on = dict.fromkeys(able, 0)
    for drawn in generator.integers(len(blocks), size=(RESAMPLES, len(blocks))):
        for arm in on(table[:, drawn].mean(axis=1)):
            drawn_on[arm] += 1
    return Front(arms, {arm: count / RESAMPLES for arm, count in drawn_on.items()}, off, blocks, None, found)


def cost_to_target(curves: Mapping[int, Sequence[Point]], target: float) -> CostToTarget:
    """Return the cost at the first point of each block's validation grid (running cost, psi) with psi >= target.

    A miss is infinite, never a number: the median over blocks is finite only where more than half arrive. A cost that
    was not measured at that point leaves the whole without a value; a point without psi is passed over.
    """
    found: dict[int, float] = {}
    for block, curve in sorted(curves.items()):
        cost = next((cost for cost, psi in curve if psi is not None and psi >= target), math.inf)
        if cost is None:
            return CostToTarget(target, None, {}, 0, f"cost not measured in block {block}")
        if not any(psi is not None for _, psi in curve):
            return CostToTarget(target, None, {}, 0, f"no validation psi in block {block}")
        found[block] = cost
    if not found:
        return CostToTarget(target, None, {}, 0, "no blocks")
    return CostToTarget(target, statistics.median(found.values()), found, sum(map(math.isinf, found.values())))


def last_window_ratio(curve: Sequence[Point], window: int) -> Estimate:
    """Return DeltaPsi / DeltaGamma over the last `window` steps between validation points (paper section 3).

    `curve`: (running cost, psi) of one run. Points that lack one, or before which nothing was spent, are skipped, as
    the stop rule does. A point; without a value where the curve is too short. Raises ValueError for a window below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} steps: give 1 or more")
    points: list[tuple[float, float]] = []
    for cost, psi in curve:
        if cost is not None and psi is not None and (not points or cost > points[-1][0]):
            points.append((cost, psi))
    if len(points) <= window:
        return Estimate(None, why=f"{len(points)} points with cost and psi, a window of {window} needs {window + 1}")
    (first_cost, first_psi), (cost, psi) = points[-1 - window], points[-1]
    return Estimate((psi - first_psi) / (cost - first_cost), why="one curve", n=1)
