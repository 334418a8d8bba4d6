"""How gain and cost grow with the share that trains or is trained on, fitted over arms, block by block.

Each block gives one fit; what is reported is the mean of its constants with a paired t interval over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cprbench.blueprint.concentration import Optimum, best_share
from cprbench.judge.statistics import Estimate, mean_difference


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x over arms; in `power_fit` x and y are logarithms, so the slope is the exponent."""

    slope: Estimate
    intercept: Estimate
    r_squared: float | None  # of the mean line through the means of the arms; None for two shares: any line fits
    shares: tuple[float, ...]


@dataclass(frozen=True)
class CostModels:
    """Root mean square of the relative error with which each model predicts a cell from all others; None with `why`."""

    additive: float | None  # a + b k + c q (eq. 37)
    product: float | None  # d k q (section 4.4)
    cells: int
    why: str | None = None


def power_fit(shares: Sequence[float], gains: Mapping[int, Sequence[float]]) -> Line:
    """Return the fit of gain = c k^gamma (or q^delta) by least squares on logarithms; c = exp(intercept).

    `gains`: block -> the gain of each arm, in the order of `shares`. A gain of 0 or below has no logarithm: nothing
    is fitted then, for leaving it out would flatten the curve.
    """
    if any(not 0 < share <= 1 for share in shares):
        return _none(shares, "a share outside (0, 1]")
    for block, values in gains.items():
        for share, value in zip(shares, values, strict=True):
            if not value > 0:
                return _none(shares, f"gain_not_positive: {value:.3g} at share {share:g} in block {block}")
    logs = {block: [math.log(value) for value in values] for block, values in gains.items()}
    return line_fit([math.log(share) for share in shares], logs)


def line_fit(shares: Sequence[float], costs: Mapping[int, Sequence[float]]) -> Line:
    """Return the fit of cost = intercept + slope * k by least squares, any signs (section 4.1 says linear).

    `costs`: block -> the cost of each arm, in the order of `shares`. Counted costs may agree in all blocks: the
    estimates then have no interval (zero_variance), and R^2 is what there is to judge by.
    """
    if len(set(shares)) < 2:
        return _none(shares, "fewer than two different shares")
    if not costs or not all(math.isfinite(value) for values in costs.values() for value in values):
        return _none(shares, "a cost is not finite" if costs else "no blocks")
    lines = [_least_squares(shares, values) for values in costs.values()]
    intercept, slope = (mean_difference([line[i] for line in lines]) for i in (0, 1))
    means = [math.fsum(column) / len(costs) for column in zip(*costs.values(), strict=True)]
    a, b = _least_squares(shares, means)
    centre = math.fsum(means) / len(means)
    spread = math.fsum((y - centre) ** 2 for y in means)
    left = math.fsum((y - a - b * x) ** 2 for x, y in zip(shares, means, strict=True))
    told = len(set(shares)) > 2 and spread > 0
    return Line(slope, intercept, 1 - left / spread if told else None, tuple(shares))


def predicted_best(gains: Line, costs: Line) -> Optimum:
    """Return k* of eq. 15 from a power_fit of gains and a line_fit of costs, where eq. 16 holds."""
    if gains.slope.value is None or costs.slope.value is None or costs.intercept.value is None:
        return Optimum(None, False, gains.slope.why if gains.slope.value is None else costs.slope.why)
    if gains.slope.value < 0 or costs.slope.value <= 0 or costs.intercept.value < 0:
        return Optimum(None, False, "eq. 15 needs gains that grow with k, and costs that are positive and grow with k")
    return best_share(gains.slope.value, costs.intercept.value, costs.slope.value)


def additive_vs_product(costs: Mapping[tuple[float, float], float]) -> CostModels:
    """Return how well each cost model predicts cells (k, q) -> cost that it was not fitted to.

    Both are fitted to relative errors. Leaving each cell out in turn keeps three constants from beating one by their
    number alone. Needs five cells, at two different k and q, such that no cell alone settles a constant.
    """
    import numpy as np

    wrong = {cell: cost for cell, cost in costs.items() if not (cost > 0 and math.isfinite(cost) and min(cell) > 0)}
    if wrong:
        return CostModels(None, None, len(costs), f"a cell without a positive cost and shares: {wrong}")
    if len(costs) < 5:
        return CostModels(None, None, len(costs), "fewer than five cells")
    k, q = np.array(list(costs)).T
    cost = np.array(list(costs.values()))
    errors = []
    for columns in ([np.ones(len(k)), k, q], [k * q]):
        design = np.stack(columns, axis=1) / cost[:, None]  # relative: what is fitted is 1 in every cell
        hat = design @ np.linalg.pinv(design)
        apart = 1 - np.diag(hat)  # 0: a cell that alone settles a constant
        if np.linalg.matrix_rank(design) < len(columns) or apart.min() < 1e-9:
            return CostModels(None, None, len(costs), "the cells do not settle the constants without each one of them")
        errors.append(float(np.sqrt(np.mean(((1 - hat.sum(axis=1)) / apart) ** 2))))
    return CostModels(errors[0], errors[1], len(costs))


def _none(shares: Sequence[float], why: str) -> Line:
    return Line(Estimate(None, why=why), Estimate(None, why=why), None, tuple(shares))


def _least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return (intercept, slope)."""
    x, y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    slope = math.fsum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / math.fsum((a - x) ** 2 for a in xs)
    return y - slope * x, slope
