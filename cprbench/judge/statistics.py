"""Estimates with intervals from paired blocks: the only place where an interval or a p-value is made.

Blocks are few, so Student's t decides and percentile bootstraps do not; items are many, so they are resampled. An error
is se^2 = s_block^2 / n + item variance of the block mean, with n - 1 degrees of freedom. docs/statistics.md shows by
simulation what these intervals hold. Everything random comes from Generator(PCG64(SEED)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of the formulas and of what is resampled; stored beside every verdict with RESAMPLES and SEED.
VERSION = "1"
LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
#: Fewer blocks are points; fewer for a verdict leave it open: five paired blocks cannot give a sign-flip p below 0.05.
LEAST_FOR_INTERVAL = 3
LEAST_FOR_VERDICT = 6

# Reasons that callers compare with.
TOO_FEW = f"fewer than {LEAST_FOR_INTERVAL} blocks"
ZERO_VARIANCE = "zero_variance"
DENOMINATOR = "denominator_not_positive"

#: Above this many blocks all sign vectors are too many to look at.
_MOST_FLIPPED = 20
#: Values whose spread is below this share of their size differ by rounding alone.
_ROUNDING = 1e-9
#: A ratio whose logarithm is larger has no floating-point number.
_MOST_LOG = 700.0

Covariance = tuple[tuple[float, float], tuple[float, float]]
Rows = Sequence[Mapping[str, Any]]  # lines of predictions.jsonl: id, prediction, reference, scores
_NO_ITEMS: Covariance = ((0.0, 0.0), (0.0, 0.0))


@dataclass(frozen=True)
class _Means:
    """Means of numerators and denominators, the covariance of these means, and whether they are logarithms."""

    numerator: float
    denominator: float
    covariance: Covariance
    logarithmic: bool = False

    def se(self, ratio: float) -> float:
        """Return the standard error of numerator - ratio * denominator."""
        (top, both), (_, bottom) = self.covariance
        return math.sqrt(max(0.0, top - 2 * ratio * both + ratio * ratio * bottom))


@dataclass(frozen=True)
class Estimate:
    """A number with its interval at LEVEL, or the reason why either is not there.

    `p` is two-sided: of a mean against 0, of a ratio against 1. `sign_flip_p` stands beside it and decides nothing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None
    n: int = 0  # blocks
    se: float | None = None  # of the value; of its logarithm for a cost ratio
    p: float | None = None
    sign_flip_p: float | None = None
    no_items: str | None = None  # why the interval leaves out the error of the test's items, of which it should hold it
    means: _Means | None = field(default=None, repr=False, compare=False)

    def p_above(self, threshold: float) -> float | None:
        """Return the one-sided p of "the true value is at most `threshold`"; None without an interval."""
        return None if (t := self._t(threshold)) is None else _student(self.n - 1, -t)

    def p_below(self, threshold: float) -> float | None:
        """Return the one-sided p of "the true value is at least `threshold`"; None without an interval."""
        return None if (t := self._t(threshold)) is None else _student(self.n - 1, t)

    def _t(self, threshold: float) -> float | None:
        """Return t of numerator - threshold * denominator: within its quantiles exactly inside Fieller's set."""
        if self.low is None or self.means is None:
            return None
        if self.means.logarithmic:
            if threshold <= 0:
                return math.inf  # a ratio of costs is above zero
            threshold = math.log(threshold)
        distance, se = self.means.numerator - threshold * self.means.denominator, self.means.se(threshold)
        return distance / se if se > 0 else math.copysign(math.inf, distance) if distance else 0.0


def mean_difference(differences: Sequence[float], item_variance: float = 0.0) -> Estimate:
    """Return the mean of one paired difference per block with its t interval.

    `item_variance`: of the mean over blocks, from resampled items (gain_covariance), in squared units of the
    difference. Blocks without any spread have no interval, whatever the items say: runs that repeat one another are
    one block. Raises ValueError for an item variance that is negative or not finite.
    """
    return _fieller(differences, [1.0] * len(differences), ((item_variance, 0.0), (0.0, 0.0)), null=0.0)


def ratio_of_means(
    numerators: Sequence[float], denominators: Sequence[float], item_covariance: Covariance | None = None
) -> Estimate:
    """Return mean(numerators) / mean(denominators), paired by block, with Fieller's interval (Fieller 1954).

    `item_covariance`: of the two means over blocks, from resampled items. Without a value where the denominator's own
    interval reaches 0 (DENOMINATOR): elsewhere the set is bounded. No interval where the numerators are a multiple of
    the denominators in every block (ZERO_VARIANCE). Raises ValueError for unequal lengths.
    """
    return _fieller(numerators, denominators, item_covariance or _NO_ITEMS, null=1.0)


def cost_ratio(costs: Sequence[float], reference_costs: Sequence[float], *, counted: bool = False) -> Estimate:
    """Return the geometric mean of cost / reference cost, paired by block, with a t interval made on logarithms.

    `counted`: FLOPs, bytes or examples have no noise of measurement, so equal ratios in all blocks are an interval
    of one point; a measured cost has none then. A cost that is zero, negative or infinite has no ratio.
    """
    pairs = list(zip(costs, reference_costs, strict=True))
    if any(not math.isfinite(value) for pair in pairs for value in pair):
        return Estimate(None, why="cost_not_finite", n=len(pairs))
    if any(value <= 0 for pair in pairs for value in pair):
        return Estimate(None, why="cost_not_positive", n=len(pairs))
    found = _fieller([math.log(a) - math.log(b) for a, b in pairs], [1.0] * len(pairs), _NO_ITEMS, null=0.0)
    if found.value is None or found.means is None:
        return found
    if max(abs(edge) for edge in (found.value, found.low, found.high) if edge is not None) > _MOST_LOG:
        return Estimate(None, why="cost_not_finite", n=len(pairs))
    value, low, high = (None if edge is None else math.exp(edge) for edge in (found.value, found.low, found.high))
    means = _Means(found.means.numerator, 1.0, found.means.covariance, logarithmic=True)
    if counted and found.why == ZERO_VARIANCE:
        return Estimate(value, value, value, None, found.n, 0.0, means=_Means(found.value, 1.0, _NO_ITEMS, True))
    return Estimate(value, low, high, found.why, found.n, found.se, found.p, found.sign_flip_p, means=means)


def _fieller(numerators: Sequence[float], denominators: Sequence[float], items: Covariance, null: float) -> Estimate:
    """Return the ratio of two means; a plain mean has denominators of 1 and no variance there. p is against `null`."""
    n = len(numerators)
    pairs = list(zip(numerators, denominators, strict=True))
    (top, both), (_, bottom) = items
    if not (math.isfinite(top) and math.isfinite(both) and math.isfinite(bottom) and top >= 0 and bottom >= 0):
        raise ValueError(f"an item covariance of {items} is none: finite numbers, variances from 0 up")
    if not n:
        return Estimate(None, why="no blocks")
    if any(not math.isfinite(value) for pair in pairs for value in pair):
        return Estimate(None, why="not_finite", n=n)
    a, b = _mean(numerators), _mean(denominators)
    if b <= 0 or not math.isfinite(value := a / b):
        return Estimate(None, why=DENOMINATOR, n=n)
    if n < LEAST_FOR_INTERVAL:
        return Estimate(value, why=TOO_FEW, n=n, means=_Means(a, b, items))
    top += _product(numerators, a, numerators, a) / n
    both += _product(numerators, a, denominators, b) / n
    bottom += _product(denominators, b, denominators, b) / n
    means, t = _Means(a, b, ((top, both), (both, bottom))), _quantile(n - 1)
    if b <= t * math.sqrt(bottom):
        return Estimate(None, why=DENOMINATOR, n=n)
    residuals = [x - value * y for x, y in pairs]
    size = max(max(abs(x), abs(value * y)) for x, y in pairs)
    if max(residuals) - min(residuals) <= _ROUNDING * size or not means.se(value):  # too small to be squared
        return Estimate(value, why=ZERO_VARIANCE, n=n, means=means)
    # Fieller's quadratic, with its terms gathered so that a small error of a large value is not lost in rounding.
    left = 1 - (t * math.sqrt(bottom) / b) ** 2
    spread = (top / b) * (bottom / b) - (both / b) ** 2  # by b twice: its square may be too small for a float
    squared = means.se(value) ** 2 - t * t * spread
    centre, half = (value - t * t * (both / b) / b) / left, t * math.sqrt(max(0.0, squared)) / (b * left)
    se = means.se(null)
    return Estimate(
        value=value,
        low=centre - half,
        high=centre + half,
        n=n,
        se=means.se(value) / b,
        p=2 * _student(n - 1, -abs(a - null * b) / se) if se > 0 else None,
        sign_flip_p=sign_flip_p([x - null * y for x, y in pairs]),
        means=means,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # exactly rounded: the order of the blocks changes no digit


def _product(left: Sequence[float], left_mean: float, right: Sequence[float], right_mean: float) -> float:
    """Return the sample covariance."""
    return math.fsum((x - left_mean) * (y - right_mean) for x, y in zip(left, right, strict=True)) / (len(left) - 1)


def _student(degrees: int, t: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(degrees, t))


def _quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p of the sign-flip test of the mean; None for no blocks or more than 20.

    The share of all 2^n sign vectors whose sum is at least as far from 0: never below 2 / 2^n.
    """
    import numpy as np

    if not differences or len(differences) > _MOST_FLIPPED:
        return None
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    slack = _ROUNDING * math.fsum(abs(value) for value in differences)
    return float(np.mean(np.abs(sums) >= abs(math.fsum(differences)) - slack))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number by Holm's step-down (Holm 1979), in the order given.

    A claim that could not be tested belongs in here with p = 1, so that missing runs never loosen the rest. Raises
    ValueError for a p outside [0, 1].
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"p-values outside [0, 1]: {wrong}")
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


# --- items ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemError:
    """The covariance, over resampled items, of (mean gain of an arm, mean gain of full); None with the reason.

    Variance and covariance of full's are 0 where no full was given.
    """

    covariance: Covariance | None
    why: str | None = None

    @property
    def variance(self) -> float | None:
        """The variance of the arm's mean gain over blocks."""
        return None if self.covariance is None else self.covariance[0][0]


class Scored:
    """The predictions of one run under one metric, resampled once for all comparisons that it enters.

    `items`: how many items its score is of, where that is known.
    """

    def __init__(self, metric: str, rows: Rows, items: int | None = None) -> None:
        self.metric = metric
        self._rows, self._items = rows, items

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the items, sorted. Raises ValueError where the score is of more or fewer items."""
        if self._rows and self._items not in (None, len(self._rows)):
            raise ValueError(f"{len(self._rows)} predictions are stored, of {self._items} items")
        return sorted(str(row["id"]) for row in self._rows)

    @cached_property
    def resamples(self) -> NDArray[Any]:
        """The psi of every resample [RESAMPLES]. Raises KeyError where a row lacks what the metric needs."""
        return psi_resamples(self.metric, [self._rows], item_weights(len(self._rows)))[:, 0]


def gain_covariance(
    metric: str,
    arm: Sequence[tuple[Rows | Scored, Rows | Scored | None]],
    full: Sequence[tuple[Rows | Scored, Rows | Scored]] | None = None,
    scales: Sequence[float] | None = None,
) -> ItemError:
    """Return how far the items that happened to be drawn move the mean gain over blocks.

    `arm`, `full`: per block the predictions of (what is judged, what it is judged against); the gain is the first's psi
    less the second's, so two arms are compared by giving both, and a psi alone against None. `scales`: per block, what
    full's gain is multiplied by (gamma of the arm / gamma of full for a multiple). One draw of items, RESAMPLES times,
    serves all blocks and arms: they answered the same questions. Raises ValueError where `arm`, `full` and `scales`
    differ in length.
    """
    import numpy as np

    if len(arm) != len(full or arm) or len(full or ()) != len(scales or full or ()):
        raise ValueError("arm, full and scales need one entry per block each")
    given = [run for pair in (*arm, *(full or [])) for run in pair]
    columns = [run if isinstance(run, Scored) or run is None else Scored(metric, run) for run in given]
    runs = [run for run in columns if run is not None]
    try:
        if not runs or any(not run.ids for run in runs):
            return ItemError(None, "no predictions are stored")
        ids = runs[0].ids
        if len(set(ids)) < len(ids) or any(run.ids != ids for run in runs):
            return ItemError(None, "the runs were not scored on the same items")
        with np.errstate(all="ignore"):
            psi = np.stack([np.zeros(RESAMPLES) if run is None else run.resamples for run in columns], axis=1)
    except KeyError as error:
        return ItemError(None, f"the predictions hold no {error.args[0]} for {metric}")
    except ValueError as error:
        return ItemError(None, str(error))
    except (TypeError, AttributeError, OverflowError):
        return ItemError(None, "the predictions cannot be read")
    if not np.isfinite(psi).all():
        return ItemError(None, f"the predictions give no finite {metric}")
    gains = psi[:, 0::2] - psi[:, 1::2]  # of either orientation: the covariance is the same
    ours = gains[:, : len(arm)].mean(axis=1)
    theirs = np.zeros(len(ours))
    if full is not None:
        theirs = (gains[:, len(arm) :] * np.asarray(scales or [1.0] * len(full))).mean(axis=1)
    (top, both), (_, bottom) = np.cov(ours, theirs).tolist()
    return ItemError(((top, both), (both, bottom)))


@lru_cache(maxsize=2)
def item_weights(items: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[Any]:
    """Return [resamples, items]: how often each item is drawn, with replacement, as many draws as items."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(seed))
    weights = generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(np.float64)
    weights.flags.writeable = False  # shared by all who ask
    return weights


def psi_resamples(metric: str, runs: Sequence[Rows], weights: NDArray[Any]) -> NDArray[Any]:
    """Return [resamples, runs]: psi by `metric` of each run under each row of `weights` [resamples, items].

    Items stand in the order of their ids, which are the same in all runs. Weights of 1 give the psi of
    adapt/scoring.py: accuracy, macro_f1, bits_per_byte (NLL and bytes are added up first), else the mean of
    scores[metric]. Raises KeyError for a score that a row lacks, ValueError for one that is not finite.
    """
    import numpy as np

    return np.stack([_psi(metric, sorted(run, key=lambda row: str(row["id"])), weights) for run in runs], axis=1)


def _psi(metric: str, rows: Rows, weights: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    if metric == "macro_f1":
        said, true = ([row[key] for row in rows] for key in ("prediction", "reference"))
        labels = np.array(sorted({*said, *true}))
        is_said, is_true = (np.asarray(values)[:, None] == labels for values in (said, true))
        right, either = weights @ (is_said & is_true), weights @ (is_said.astype(float) + is_true)
        # A label that no drawn item has or was given is none of this resample's.
        f1 = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
        return np.asarray(f1.sum(axis=1) / (either > 0).sum(axis=1))
    if metric == "accuracy":
        right = [row["prediction"] == row["reference"] for row in rows]
        return np.asarray(weights @ np.array(right, dtype=np.float64) / len(rows))
    if metric == "bits_per_byte":
        return np.asarray(weights @ _scores(rows, "nll") / (weights @ _scores(rows, "bytes")) / math.log(2))
    return np.asarray(weights @ _scores(rows, metric) / len(rows))


def _scores(rows: Rows, name: str) -> NDArray[Any]:
    import numpy as np

    values = [row["scores"].get(name) for row in rows]
    if None in values:
        raise KeyError(name)
    found = np.array(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} of an item is not finite")
    return found
