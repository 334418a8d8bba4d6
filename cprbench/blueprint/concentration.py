"""How concentrated gradients are and what follows from it: the paper's formulas of sections 4.1, B.1, B.2 and B.5.

Names: rank_exponent is the paper's alpha of eq. 1, mass_exponent its gamma, fixed_cost and cost_per_parameter its
alpha and beta of eq. 10. A curve is a list of (share of the elements, share of the mass), from (0, 0) to (1, 1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cprbench.blueprint.schema import Fit, Interval
from cprbench.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Points = list[tuple[float, float]]

#: Below this R^2 a fit is no description: no k_star follows from it.
POOR_FIT = 0.9
#: Fewer values have no verdict on their tail.
LEAST_POINTS = 50
#: As many values as a tail fit looks at, and as many of its tail as the likelihood ratios compare.
MOST_POINTS, MOST_COMPARED = 100_000, 20_000
#: A tail is at least 1/20 of the values: a fit to fewer says nothing of a submodule, and is not told from a lognormal.
LEAST_TAIL = 20
#: Density exponents of a heavy tail. Above 3 the variance is finite; at 1.1 the fit found no tail, but a plateau.
HEAVY = (1.1, 3.0)
#: A likelihood ratio decides below this p (Clauset, Shalizi and Newman 2009).
DECISIVE_P = 0.1
_CURVE_POINTS = 200  # what the schema allows


@dataclass(frozen=True)
class Optimum:
    """The share of parameters with the most gain per cost; `k` is None, with a reason, where no share below 1 is."""

    k: float | None
    holds: bool  # eq. 16
    why: str | None = None


class CostLine(NamedTuple):
    """Eq. 10: C(k) = (fixed_cost + cost_per_parameter * k) * N. `r_squared` is None where any line fits."""

    fixed_cost: float
    cost_per_parameter: float
    r_squared: float | None


def mass_share(k: float, n: int, rank_exponent: float) -> float:
    """Return the share of the mass that the top k of n elements hold, by the integral (eq. 7); 0 below one element."""
    if not 0 <= k <= 1 or n < 2:
        raise ValueError(f"a share k = {k} of n = {n} elements has no mass share: k in [0, 1], n >= 2")
    if k * n <= 1:
        return 0.0
    part, whole, slope = math.log(k * n), math.log(n), 1 - rank_exponent
    # expm1 keeps the digits near an exponent of 1, where eq. 7 is 0/0 and its limit ln(kn)/ln(n).
    return part / whole if abs(slope * whole) < 1e-12 else math.expm1(slope * part) / math.expm1(slope * whole)


def mass_exponent(rank_exponent: float) -> float:
    """Return 1 - a/(1 + a): the text formula of appendix A.1, smaller for a steeper rank-size line."""
    return 1 - rank_exponent / (1 + rank_exponent)


def gain_per_cost(k: float, mass_exponent: float, fixed_cost: float, cost_per_parameter: float) -> float:
    """Return G(k) = k^gamma / (alpha + beta k) (eq. 12), in full gains per cost."""
    return float(k**mass_exponent / (fixed_cost + cost_per_parameter * k))


def best_share(mass_exponent: float, fixed_cost: float, cost_per_parameter: float) -> Optimum:
    """Return k* = gamma alpha / (beta (1 - gamma)) (eq. 15) where gamma < beta/(alpha + beta) (eq. 16).

    Only the ratio of the two costs matters, so any common unit will do.
    """
    least = fixed_cost + cost_per_parameter
    if least <= 0:
        return Optimum(None, False, "the cost is zero: nothing to weigh the gain against")
    bound = cost_per_parameter / least
    if mass_exponent >= bound:
        return Optimum(None, False, f"k = 1 is best: gamma {mass_exponent:.3g} is not below {bound:.3g} (eq. 16)")
    k = mass_exponent * fixed_cost / (cost_per_parameter * (1 - mass_exponent))
    if k == 0:
        reason = "no fixed cost" if fixed_cost == 0 else "a gain that no k lowers"
        return Optimum(None, True, f"the smallest k is best: {reason} (eq. 15 gives 0)")
    return Optimum(k, True)


def predicted_retention(k: float, q: float, mass_exponent: float, data_exponent: float) -> float:
    """Return k^gamma q^delta: the share of full tuning's gain that k parameters and q data keep (eq. 35)."""
    return float(k**mass_exponent * q**data_exponent)


def predicted_multiple(k: float, q: float, mass_exponent: float, data_exponent: float) -> float:
    """Return retention / (k q): the multiple of full tuning if cost were k q, which it is not (NOTES; eq. 37 adds)."""
    return predicted_retention(k, q, mass_exponent, data_exponent) / (k * q)


def share_at(curve: Sequence[tuple[float, float]], k: float) -> float | None:
    """Return the share of mass that the top k hold, on straight lines between points; None for an empty curve."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= k <= right:
            return high if right == left else low + (high - low) * (k - left) / (right - left)
    return None


def fit_exponent(curve: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Return (g, R^2) of share = k^g: least squares of the shares themselves, each point with 0 < k < 1 counting once.

    Not of their logarithms: those would fit the smallest k, where the least is at stake. (None, None) without such
    points; R^2 is None where all shares are equal. R^2 below POOR_FIT is for the caller to judge.
    """
    points = [(k, share) for k, share in curve if 0 < k < 1]
    if not points:
        return None, None

    def loss(exponent: float) -> float:
        return math.fsum((share - k**exponent) ** 2 for k, share in points)

    low, high = -4.0, 2.0  # powers of ten; a sum of such losses may have several dips, hence grids and no bisection
    for _ in range(6):
        step = (high - low) / 40
        best = min((low + i * step for i in range(41)), key=lambda power: loss(10**power))
        low, high = best - step, best + step
    exponent = min((0.0, 10**best), key=loss)  # 0: everything is held by the first element
    return exponent, _r_squared([share for _, share in points], loss(exponent))


def fit_cost(points: Sequence[tuple[float, float]], parameters: int = 1) -> CostLine:
    """Return the least-squares line through measured (k, cost of one step), neither part below zero (eq. 10).

    `parameters`: N, the whole model's: both parts are per parameter of it; 1 keeps them per model (best_share gives the
    same). Raises SpecError without two different k.
    """
    if len({k for k, _ in points}) < 2:
        raise SpecError(
            f"a cost line needs two different k, found {sorted({k for k, _ in points})}. Measure another k."
        )
    n = len(points)
    mean_k, mean_cost = sum(k for k, _ in points) / n, sum(cost for _, cost in points) / n
    slope = sum((k - mean_k) * (cost - mean_cost) for k, cost in points) / sum((k - mean_k) ** 2 for k, _ in points)
    fixed = mean_cost - slope * mean_k
    if slope < 0:
        fixed, slope = max(mean_cost, 0.0), 0.0
    elif fixed < 0:
        fixed, slope = 0.0, max(sum(k * cost for k, cost in points) / sum(k * k for k, _ in points), 0.0)
    loss = sum((cost - fixed - slope * k) ** 2 for k, cost in points)
    r_squared = _r_squared([cost for _, cost in points], loss) if n > 2 else None  # two points: any line is perfect
    return CostLine(fixed / parameters, slope / parameters, r_squared)


def mass_curve(values: NDArray[Any] | Sequence[float]) -> Points:
    """Return the share of sum |value| that the top share of `values` holds; empty where all are zero.

    At most 200 points: every 5 % exactly, and evenly in log rank towards the top.
    """
    import numpy as np

    sizes = np.sort(np.abs(np.asarray(values, dtype=np.float64)).ravel())[::-1]
    n, held = len(sizes), np.cumsum(sizes)
    if n == 0 or not held[-1] > 0:
        return []
    ranks = np.unique(np.concatenate([np.geomspace(1, n, 100), n * np.arange(1, 21) / 20]).astype(int).clip(1, n))
    return [(0.0, 0.0), *((int(r) / n, min(1.0, float(held[r - 1] / held[-1]))) for r in ranks)]


def mass_curve_of_histogram(counts: Sequence[int], sums: Sequence[float]) -> Points:
    """Return mass_curve from a histogram: per bin how many |values| and their sum, bins in any order."""
    bins = [(count, mass) for count, mass in zip(counts, sums, strict=True) if count]
    return _cumulated(sorted(bins, key=lambda item: item[1] / item[0], reverse=True))


def pick_curve(order: Sequence[str], norms: Mapping[str, float], sizes: Mapping[str, int]) -> Points:
    """Return the share of squared norm against the share of parameters, whole submodules in the order of picking.

    `order` names every submodule of `sizes` (submodule -> parameters) once; raises ValueError otherwise.
    """
    if sorted(order) != sorted(sizes):
        raise ValueError("the order of picking must name every submodule once")
    return _cumulated([(sizes[name], norms[name] ** 2) for name in order])


def _cumulated(parts: Sequence[tuple[float, float]]) -> Points:
    """Return the running shares of (size, mass) parts, thinned to what a file may hold."""
    sizes, masses = list(accumulate(s for s, _ in parts)), list(accumulate(m for _, m in parts))
    if not parts or masses[-1] <= 0:
        return []
    curve = [(size / sizes[-1], min(1.0, mass / masses[-1])) for size, mass in zip(sizes, masses, strict=True)]
    step = -(-len(curve) // (_CURVE_POINTS - 1))
    return [(0.0, 0.0), *reversed(curve[::-1][::step])]  # counted from the end, which stays (1, 1)


def bootstrap_ci(
    values: Sequence[float] | NDArray[Any], statistic: Literal["median", "mean"], seed: int, resamples: int = 1000
) -> Interval | None:
    """Return the 95 % percentile-bootstrap interval of a statistic over `values`; None for fewer than two values."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return None
    reduce = np.median if statistic == "median" else np.mean
    generator = np.random.Generator(np.random.PCG64(seed))
    block = max(1, 2_000_000 // len(data))  # resamples at a time: 16 MB of picks, however many values there are
    found = [
        reduce(data[generator.integers(len(data), size=(min(block, resamples - done), len(data)))], axis=1)
        for done in range(0, resamples, block)
    ]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return Interval(low=float(low), high=float(high))


def fit_tail(values: NDArray[Any], seed: int) -> tuple[float | None, Fit]:
    """Return (rank exponent alpha = 1/(a - 1), the fit) of a power law to the largest |values| (eq. 1).

    The tail starts where the Kolmogorov-Smirnov distance is least, and holds at least 50 values and 5 % of them all;
    exponent, distance and likelihood ratios are the package powerlaw's. At most MOST_POINTS values, drawn by `seed`,
    are looked at; zeros are left out. The exponent is None where no fit was made; elsewhere `verdict` says whether it
    describes anything.
    """
    import numpy as np

    data = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    if not np.isfinite(data).all():
        return None, _no_fit(len(data), f"{int((~np.isfinite(data)).sum())} values are not finite")
    data = data[data > 0]
    points = len(data)
    generator = np.random.Generator(np.random.PCG64(seed))
    if points > MOST_POINTS:
        data = generator.choice(data, MOST_POINTS, replace=False, shuffle=False)
    data = np.sort(data)
    start = _tail_start(data) if points >= LEAST_POINTS else None
    if start is None:
        few = f"{points} values above zero, fewer than {LEAST_POINTS}"
        return None, _no_fit(points, few if points < LEAST_POINTS else "the largest values are all equal")
    tail = data[start:]
    compared = tail
    if len(tail) > MOST_COMPARED:
        compared = generator.choice(tail, MOST_COMPARED, replace=False, shuffle=False)
    density, distance, ratios = _powerlaw(tail, compared)
    verdict, why = _verdict(density, ratios)
    fit = Fit(
        points=points,
        density_exponent=density,
        xmin=float(tail[0]),
        tail_points=len(tail),
        ks_distance=distance,
        lognormal_likelihood_ratio=ratios["lognormal"][0],
        lognormal_p=ratios["lognormal"][1],
        verdict=verdict,
        why=f"{why}; the tail is {len(tail)} of {len(data)} values",
    )
    return 1 / (density - 1), fit


def _no_fit(points: int, why: str) -> Fit:
    return Fit(
        points=points,
        density_exponent=None,
        xmin=None,
        tail_points=0,
        ks_distance=None,
        lognormal_likelihood_ratio=None,
        lognormal_p=None,
        verdict="undecided",
        why=why,
    )


def _tail_start(data: NDArray[Any]) -> int | None:
    """Return where the tail of sorted `data` starts: the least KS distance over 40 tail lengths.

    powerlaw's own search fits at every value: minutes at 1e5 of them.
    """
    import numpy as np

    logs, n = np.log(data), len(data)
    best: tuple[float, int] | None = None
    for length in np.unique(np.geomspace(max(LEAST_POINTS, n // LEAST_TAIL), n, 40).astype(int)):
        start = int(np.searchsorted(data, data[n - length], side="left"))  # equal values stand together
        above = logs[start:] - logs[start]
        if above.sum() <= 0:
            continue
        count = len(above)
        modelled = -np.expm1(-(count / above.sum()) * above)
        steps = np.arange(count + 1) / count
        distance = float(max((modelled - steps[:-1]).max(), (steps[1:] - modelled).max()))
        if best is None or (distance, start) < best:
            best = distance, start
    return None if best is None else best[1]


def _powerlaw(
    tail: NDArray[Any], compared: NDArray[Any]
) -> tuple[float, float, dict[str, tuple[float | None, float | None]]]:
    """Return density exponent, KS distance, and per rival (normalized likelihood ratio, p)."""
    import importlib

    with warnings.catch_warnings():  # it warns of every bound that an optimizer meets on its way
        warnings.simplefilter("ignore")
        powerlaw = importlib.import_module("powerlaw")  # not at the top: it imports matplotlib
        # By default it cuts exponents off at 3: thin tails would come out as the heaviest ones allowed.
        options = {"xmin": tail[0], "verbose": 0, "parameter_ranges": {"alpha": [1.0, 1e6]}}
        fitted = powerlaw.Fit(tail, **options)
        rivals = fitted if compared is tail else powerlaw.Fit(compared, **options)
        ratios: dict[str, tuple[float | None, float | None]] = {}
        for name in ("lognormal", "exponential"):
            ratio, p = rivals.distribution_compare("power_law", name, normalized_ratio=True)
            known = math.isfinite(ratio) and math.isfinite(p)
            ratios[name] = (float(ratio), min(1.0, max(0.0, float(p)))) if known else (None, None)
        return float(fitted.power_law.alpha), float(fitted.power_law.D), ratios


def _verdict(
    density: float, ratios: Mapping[str, tuple[float | None, float | None]]
) -> tuple[Literal["heavy-tailed", "not heavy-tailed", "undecided"], str]:
    if not HEAVY[0] <= density <= HEAVY[1]:
        return "not heavy-tailed", f"density exponent {density:.3g} is outside {HEAVY[0]:g} to {HEAVY[1]:g}"
    for name, (ratio, p) in ratios.items():
        if ratio is not None and p is not None and ratio < 0 and p < DECISIVE_P:
            return "not heavy-tailed", f"the {name} is likelier (p = {p:.2g})"
    ratio, p = ratios["exponential"]
    if ratio is None or p is None or p >= DECISIVE_P:
        return "undecided", "neither a power law nor an exponential is likelier"
    alpha = 1 / (density - 1)
    lognormal, p_lognormal = ratios["lognormal"]
    beaten = lognormal is not None and p_lognormal is not None and lognormal > 0 and p_lognormal < DECISIVE_P
    rival = (
        "the power law beats exponential and lognormal"
        if beaten
        else "likelier than an exponential, not told from a lognormal"
    )
    return "heavy-tailed", f"{rival}; alpha {alpha:.3g} is {'above' if alpha > 1 else 'not above'} 1 (eq. 1)"


def _r_squared(values: Sequence[float], loss: float) -> float | None:
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    return 1 - loss / spread if spread > 0 else None
