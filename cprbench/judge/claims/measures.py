"""The statistics that claims may ask for, by name. Each returns an Estimate or raises UnmeasuredError with the reason.

Statistics of runs are paired by block; those over arms are computed in every block by itself and averaged over blocks.
Statistics of files (blueprints, audits, cross-influence) count models: one file per model is one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from cprbench.errors import did_you_mean
from cprbench.judge import cpr, scaling
from cprbench.judge.claims import file_measures as files
from cprbench.judge.claims.asking import Ask, UnmeasuredError, mean_over
from cprbench.judge.cpr import AXES, COUNTED, Comparison
from cprbench.judge.groups import Figure, k_of, q_of
from cprbench.judge.retention import PREDICTIONS, retention
from cprbench.judge.statistics import Estimate
from cprbench.spec import RunRecord, better_by

_Runs = Mapping[int, RunRecord]
#: Shares of training at which the paper takes blueprints (section 5).
CHECKPOINTS = (0.5, 0.8, 1.0)


# --- arms against a reference -----------------------------------------------------------------------


def _retained_gain(ask: Ask) -> Estimate:
    arm, reference = ask.pair()
    return ask.comparison(reference).retained(arm)


def _multiple_of_full(ask: Ask) -> Estimate:
    arm, full = ask.pair()
    table = ask.comparison(full)
    floor = cpr.floor_of(table.gain(arm), table.retained(arm))
    if floor is not None:
        raise UnmeasuredError(
            f"{ask.claim.arm!r} is below the capability floor, where a multiple rewards doing less: {floor}"
        )
    return table.multiple(arm, ask.claim.resource)


def _gain_difference(ask: Ask) -> Estimate:
    # Of two scores of the same block: a head run, or none, moves neither.
    return Comparison(ask.of_group.metric, None, {}, ask.evidence.predictions).difference(*ask.pair())


def _cost_ratio(ask: Ask) -> Estimate:
    arm, reference = ask.pair()
    found = cpr.cost_ratio(arm, reference, ask.claim.resource)
    if ask.claim.resource not in COUNTED or found.value is None:
        return found
    own, other = ([cpr.cost_of(of[b], ask.claim.resource) or 0.0 for b in arm] for of in (arm, reference))
    ratios = [a / b for a, b in zip(own, other, strict=True)]  # not by logarithms: these round
    low, high = min(ratios), max(ratios)
    return Estimate(min(max(found.value, low), high), low, high, n=found.n)


# --- over arms --------------------------------------------------------------------------------------


def _shares_of(ask: Ask) -> tuple[list[float], dict[str, dict[int, RunRecord]], list[int]]:
    """Return the share that each arm reached (of parameters; of examples with `over` = "q"), their runs, the blocks."""
    runs = {name: ask.arm(name) for name in ask.claim.arms}
    blocks = list(next(iter(runs.values())))  # all arms have the same: Ask.arm saw to it
    share = q_of if ask.claim.settings.get("over") == "q" else k_of
    found = [[share(record) for record in of.values()] for of in runs.values()]
    if any(value is None for values in found for value in values):
        raise UnmeasuredError("could not be measured: a run does not tell its share")
    return [sum(v for v in values if v is not None) / len(values) for values in found], runs, blocks


def _by_block(ask: Ask, axis: str | None) -> tuple[list[float], dict[int, list[float]]]:
    """Return the shares, and by block what each arm gains (axis None) or spends."""
    shares, runs, blocks = _shares_of(ask)
    if axis is None:
        table = ask.comparison({})
        columns: list[dict[int, float]] = [table.gains(of) for of in runs.values()]
        why = "a gain is not there: no head run, or no psi"
    else:
        _of_one_kind(axis, runs)
        columns = [
            {b: cost for b, r in of.items() if (cost := cpr.cost_of(r, axis)) is not None} for of in runs.values()
        ]
        why = f"{axis} was not measured"
    if any(set(column) < set(blocks) for column in columns):
        raise UnmeasuredError(f"could not be measured: {why}")
    return shares, {block: [column[block] for column in columns] for block in blocks}


def _of_one_kind(axis: str, runs: Mapping[str, _Runs]) -> None:
    if why := cpr.of_two_kinds(axis, [record for of in runs.values() for record in of.values()]):
        raise UnmeasuredError(f"could not be measured: {why}")


def _gain_exponent(ask: Ask) -> Estimate:
    return scaling.power_fit(*_by_block(ask, None)).slope


def _cost_line_r_squared(ask: Ask) -> Estimate:
    shares, costs = _by_block(ask, ask.claim.resource)
    found = [scaling.line_fit(shares, {block: values}).r_squared for block, values in costs.items()]
    return _spread(mean_over(found, "no line through these arms"), found, ask.claim.resource)


def _best_share_distance(ask: Ask) -> Estimate:
    """Return |log2(k* / measured best k)|: 1 is a factor of two. k* is 1 where eq. 16 fails."""
    shares, gains = _by_block(ask, None)
    _, costs = _by_block(ask, ask.claim.resource)
    found: list[float | None] = []
    for block in gains:
        fit, line = scaling.power_fit(shares, {block: gains[block]}), scaling.line_fit(shares, {block: costs[block]})
        best = scaling.predicted_best(fit, line)
        constants = (fit.slope.value, line.slope.value, line.intercept.value, *costs[block])
        predicted = best.k if best.holds else 1.0
        if predicted is None or any(value is None or value <= 0 for value in constants):
            found.append(None)  # 1 is what a failing eq. 16 says, not what a fit that has no eq. 15 does
            continue
        rates = [gain / cost for gain, cost in zip(gains[block], costs[block], strict=True)]
        found.append(abs(math.log2(predicted / shares[rates.index(max(rates))])))
    return mean_over(found, "no k* in some block: gain and cost have to be positive and to grow with k")


def _cost_model_error(ask: Ask) -> Estimate:
    """Return the relative error (root mean square) of `model` = additive (eq. 37) or product (4.4) over the cells."""
    runs = {name: ask.arm(name) for name in ask.claim.arms}
    _of_one_kind(ask.claim.resource, runs)
    found: list[float | None] = []
    why = "a cell has no share or no cost"
    for block in next(iter(runs.values())):
        cells = {}
        for record in (of[block] for of in runs.values()):
            k, q, cost = k_of(record), q_of(record), cpr.cost_of(record, ask.claim.resource)
            if k is None or q is None or cost is None:
                raise UnmeasuredError(f"could not be measured: {why} in block {block}")
            cells[k, q] = cost
        models = scaling.additive_vs_product(cells)
        why = models.why or why
        found.append(models.additive if ask.claim.settings.get("model") == "additive" else models.product)
    return _spread(mean_over(found, why), found, ask.claim.resource)


def _spread(mean: Estimate, values: Sequence[float | None], resource: str) -> Estimate:
    """Return an estimate of counted costs from the least to the largest block: they have no noise."""
    known = [value for value in values if value is not None]
    return Estimate(mean.value, min(known), max(known), n=mean.n) if resource in COUNTED else mean


def _prediction_error(ask: Ask) -> Estimate:
    """Return the mean of |predicted - measured| retained gain over the claim's cells, by eq. 34 or 35."""
    name = str(ask.claim.settings.get("prediction", "eq35"))
    runs = {arm: ask.arm(arm) for arm in ask.claim.arms}
    ask.comparison(ask.arm("full"))  # what the table measures against is held to the same
    found: list[float | None] = []
    for block in next(iter(runs.values())):
        (group,) = cpr.compare(r for r in ask.of_group.records if r.block == block)
        table = retention(group)
        rows = {row.arm: row for row in table.rows} if table is not None else {}
        errors = []
        for arm in ask.claim.arms:
            told = (rows[arm].predicted[name], rows[arm].kept) if arm in rows else (Figure.none("no cell"),) * 2
            predicted, kept = told
            if predicted.value is None or kept.value is None:
                why = predicted.why if predicted.value is None else kept.why
                raise UnmeasuredError(f"could not be measured: {arm!r} in block {block}: {why}")
            errors.append(abs(predicted.value - kept.value))
        found.append(sum(errors) / len(errors))
    return mean_over(found, "no cells")


# --- inside a run -----------------------------------------------------------------------------------


def _last_share_of_gain(ask: Ask) -> Estimate:
    """Return the share of the validation gain, from the first validation on, that the `last` share of steps made."""
    last, metric = ask.setting("last", 0.15), ask.of_group.metric
    found: list[float | None] = []
    for record in ask.arm(str(ask.claim.arm)).values():
        rows = _validations(ask, record, metric)
        before = [psi for step, psi in rows if step <= (1 - last) * rows[-1][0]]
        if len(before) < 2:
            raise UnmeasuredError(
                f"could not be measured: too few validations before the last {100 * last:.0f} % of the steps"
            )
        first, middle, end = rows[0][1], before[-1], rows[-1][1]
        whole = better_by(metric, end, first)
        found.append(better_by(metric, end, middle) / whole if whole > 0 else None)
    return mean_over(found, "validation did not improve")


def _validations(ask: Ask, record: RunRecord, metric: str) -> list[tuple[float, float]]:
    """Return (step, psi) of a run's validations, none where its history is not as we write it."""
    rows = [row for row in ask.evidence.validations(record) if row["validation"]]
    try:
        return [(float(row["step"]), float(row["validation"][metric])) for row in rows if metric in row["validation"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def _rank_stability(ask: Ask) -> Estimate:
    """Return the least Spearman correlation of norms between a run's blueprints at CHECKPOINTS, over blocks."""
    found: list[float | None] = []
    for record in ask.arm(str(ask.claim.arm)).values():
        told = record.notes.get("blueprint_ranks")
        pairs = [f"{a:.2f}-{b:.2f}" for a, b in combinations(CHECKPOINTS, 2)]
        ranks = [told.get(pair) for pair in pairs] if isinstance(told, dict) else []
        numbers = [value for value in ranks if isinstance(value, float)]
        found.append(min(numbers) if numbers and numbers == ranks else None)
    return mean_over(found, "a run has no ranks of blueprints at 50, 80 and 100 % of its training")


def _rank_share(ask: Ask) -> Estimate:
    """Return the least rank that holds `mass` of the squares of T, as a share of its submodules (eq. 33)."""
    mass = ask.setting("mass", 0.9)
    found: list[float | None] = []
    for record in ask.arm(str(ask.claim.arm)).values():
        told = record.notes.get("cross_influence")
        singular = told.get("singular_values") if isinstance(told, dict) else None
        numbers = [value for value in singular if isinstance(value, float)] if isinstance(singular, list) else []
        found.append(_rank(numbers, mass) if singular and numbers == singular else None)
    return mean_over(found, "the run keeps no singular values of T")


def _rank(singular: Sequence[float], mass: float) -> float | None:
    if not (largest := max(singular)) > 0:
        return None
    squares = sorted(((value / largest) ** 2 for value in singular), reverse=True)  # none overflows
    least = mass * math.fsum(squares) * (1 - 1e-12)
    return next(i for i in range(1, len(squares) + 1) if math.fsum(squares[:i]) >= least) / len(squares)


@dataclass(frozen=True)
class Measure:
    """A statistic: how it is computed, which keys of a claim it takes, and what a line of help says."""

    of: Callable[[Ask], Estimate]
    help: str
    takes: tuple[str, ...] = ()  # of arm, arms, reference, resource
    settings: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)  # the words it may be, None: a share
    files: bool = False  # of files about models instead of runs
    discrete: bool = False  # few values are possible: that all agree is an answer

    @property
    def unit(self) -> str:
        """What is counted as one observation."""
        return "models" if self.files else "blocks"


_ONE, _MANY = ("arm", "reference"), ("arms", "resource")
_OVER: dict[str, tuple[str, ...] | None] = {"over": ("k", "q")}
MEASURES: dict[str, Measure] = {
    "retained_gain": Measure(_retained_gain, "gain of arm / gain of reference", _ONE),
    "multiple_of_full": Measure(_multiple_of_full, "gain per resource / reference's", (*_ONE, "resource")),
    "gain_difference": Measure(_gain_difference, "psi of arm less psi of reference", _ONE),
    "cost_ratio": Measure(_cost_ratio, "cost of arm / cost of reference", (*_ONE, "resource")),
    "gain_exponent": Measure(_gain_exponent, "x of gain ~ share^x over arms", ("arms",), _OVER),
    "cost_line_r_squared": Measure(_cost_line_r_squared, "R^2 of cost = a + b share over arms", _MANY, _OVER),
    "best_share_distance": Measure(_best_share_distance, "|log2(k* of eq. 15 / best k)|", _MANY, discrete=True),
    "cost_model_error": Measure(
        _cost_model_error, "relative error of a cost model", _MANY, {"model": ("additive", "product")}
    ),
    "prediction_error": Measure(
        _prediction_error, "mean |predicted - measured| retained gain", ("arms",), {"prediction": PREDICTIONS}
    ),
    "last_share_of_gain": Measure(
        _last_share_of_gain, "share of the gain made by the last steps", ("arm",), {"last": None}
    ),
    "rank_stability": Measure(_rank_stability, "least rank correlation of blueprints on the way", ("arm",)),
    "rank_share": Measure(_rank_share, "rank of T / its submodules", ("arm",), {"mass": None}, discrete=True),
    "top_mass": Measure(files.top_mass, "mass of the top share of scalars", (), {"share": None}, files=True),
    "power_law_share": Measure(
        files.power_law_share, "share of submodules that follow a power law", files=True, discrete=True
    ),
    "influence_share": Measure(
        files.influence_share, "squared norm held by middle attention cells", (), {"share": None}, files=True
    ),
    "domain_lean": Measure(
        files.domain_lean,
        "late feed-forward share in a domain / in another",
        settings={"domain": (), "reference_domain": ()},
        files=True,
    ),
    "fisher_rank_correlation": Measure(
        files.fisher_rank_correlation, "Spearman of norms and Fisher influence", files=True
    ),
    "power_law_of_examples": Measure(
        files.power_law_of_examples, "whether J(z) follows a power law", files=True, discrete=True
    ),
}


def is_exact(statistic: str, resource: str) -> bool:
    """Return whether a statistic has no noise of measurement: then every block has to say the same."""
    return statistic in ("cost_ratio", "cost_line_r_squared", "cost_model_error") and resource in COUNTED


def check(measure: Measure, resource: str, settings: Mapping[str, object]) -> None:
    """Raise ValueError for a resource or settings that a statistic does not have."""
    if resource not in AXES:
        raise ValueError(f"unknown resource {resource!r}. {did_you_mean(resource, AXES)}")
    known = measure.settings
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"unknown setting {name!r}. " + (did_you_mean(name, known) if known else "It takes none."))
        words = known[name]
        if words is None and not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1):
            raise ValueError(f"settings.{name} = {value!r}: a share between 0 and 1")
        if words and value not in words:
            raise ValueError(f"settings.{name} = {value!r}: {' or '.join(words)}")
