"""The statistics that claims may ask for, by name. Each returns an Estimate or raises UnmeasuredError with the reason.

Statistics of runs are paired by block; those over arms are computed in every block by itself and averaged over blocks.
Statistics of files (blueprints, audits, cross-influence) count models: one file per model is one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cprbench.errors import did_you_mean
from cprbench.judge import cpr, file_measures, scaling
from cprbench.judge.asking import Ask, UnmeasuredError, mean_over
from cprbench.judge.cpr import AXES, COUNTED, Group
from cprbench.judge.groups import trained_share_of
from cprbench.judge.retention import PREDICTIONS, retention
from cprbench.judge.statistics import Estimate
from cprbench.runs.store import HISTORY
from cprbench.spec import RunRecord, better_by

if TYPE_CHECKING:
    pass

_Runs = Mapping[int, RunRecord]


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
    arm, reference = ask.pair()
    return ask.comparison(reference).difference(arm, reference)


def _cost_ratio(ask: Ask) -> Estimate:
    arm, reference = ask.pair()
    found = cpr.cost_ratio(arm, reference, ask.claim.resource)
    if ask.claim.resource not in COUNTED or found.value is None:
        return found
    costs = [cpr.cost_ratio({b: arm[b]}, {b: reference[b]}, ask.claim.resource).value or 0.0 for b in arm]
    return Estimate(found.value, min(costs), max(costs), n=len(costs))


# --- over arms --------------------------------------------------------------------------------------


def _shares_of(ask: Ask) -> tuple[list[float], dict[str, dict[int, RunRecord]], list[int]]:
    """Return the share that each arm reached (of parameters; of examples with `over` = "q"), their runs, the blocks."""
    runs = {name: ask.arm(name) for name in ask.claim.arms}
    blocks = sorted(set.intersection(*(set(of) for of in runs.values())))
    if any(set(of) != set(blocks) for of in runs.values()):
        raise UnmeasuredError("could not be measured: the arms do not have the same blocks")
    share = _q if ask.claim.settings.get("over") == "q" else _k
    found = [[share(record) for record in of.values()] for of in runs.values()]
    if any(value is None for values in found for value in values):
        raise UnmeasuredError("could not be measured: a run does not tell its share")
    return [sum(v for v in values if v is not None) / len(values) for values in found], runs, blocks


def _k(record: RunRecord) -> float | None:
    if record.spec.method.name == "full":
        return 1.0
    return trained_share_of(record) if record.k_reached is None else record.k_reached


def _q(record: RunRecord) -> float | None:
    told = record.notes.get("selection")
    reached = told.get("q_reached") if isinstance(told, dict) else None
    return 1.0 if record.spec.selection.name == "all" else reached if isinstance(reached, float) else None


def _by_block(ask: Ask, axis: str | None) -> tuple[list[float], dict[int, list[float]]]:
    """Return the shares, and by block what each arm gains (axis None) or spends."""
    shares, runs, blocks = _shares_of(ask)
    if axis is None:
        table = ask.comparison({})
        columns: list[dict[int, float]] = [table.gains(of) for of in runs.values()]
        why = "a gain is not there: no head run, or no psi"
    else:
        columns = [
            {b: cost for b, r in of.items() if (cost := cpr.cost_of(r, axis)) is not None} for of in runs.values()
        ]
        why = f"{axis} was not measured"
    if any(set(column) < set(blocks) for column in columns):
        raise UnmeasuredError(f"could not be measured: {why}")
    return shares, {block: [column[block] for column in columns] for block in blocks}


def _gain_exponent(ask: Ask) -> Estimate:
    return scaling.power_fit(*_by_block(ask, None)).slope


def _cost_line_r_squared(ask: Ask) -> Estimate:
    shares, costs = _by_block(ask, ask.claim.resource)
    found = [scaling.line_fit(shares, {block: values}).r_squared for block, values in costs.items()]
    return mean_over(found, "no line through these arms")


def _best_share_distance(ask: Ask) -> Estimate:
    """Return |log2(k* / measured best k)|: 1 is a factor of two. k* is 1 where eq. 16 fails."""
    shares, gains = _by_block(ask, None)
    _, costs = _by_block(ask, ask.claim.resource)
    found: list[float | None] = []
    for block in gains:
        fit, line = scaling.power_fit(shares, {block: gains[block]}), scaling.line_fit(shares, {block: costs[block]})
        best = scaling.predicted_best(fit, line)
        rates = [gain / cost for gain, cost in zip(gains[block], costs[block], strict=True)]
        predicted = best.k if best.k is not None else 1.0 if fit.slope.value is not None and not best.holds else None
        found.append(None if predicted is None else abs(math.log2(predicted / shares[rates.index(max(rates))])))
    return mean_over(found, "no k* in some block: a gain is not positive, or the cost has no line")


def _cost_model_error(ask: Ask) -> Estimate:
    """Return the relative error (root mean square) of `model` = additive (eq. 37) or product (4.4) over the cells."""
    runs = {name: ask.arm(name) for name in ask.claim.arms}
    found: list[float | None] = []
    why = "a cell has no share or no cost"
    for block in sorted(set.union(*(set(of) for of in runs.values()))):
        cells = {}
        for of in runs.values():
            record = of.get(block)
            k, q, cost = (
                (None,) * 3 if record is None else (_k(record), _q(record), cpr.cost_of(record, ask.claim.resource))
            )
            if k is None or q is None or cost is None:
                raise UnmeasuredError(f"could not be measured: {why} in block {block}")
            cells[k, q] = cost
        models = scaling.additive_vs_product(cells)
        why = models.why or why
        found.append(models.additive if ask.claim.settings.get("model") == "additive" else models.product)
    return mean_over(found, why)


def _prediction_error(ask: Ask) -> Estimate:
    """Return the mean of |predicted - measured| retained gain over the cells of a sweep, by eq. 34 or 35."""
    name = str(ask.claim.settings.get("prediction", "eq35"))

    def error(group: Group) -> float | None:
        table = retention(group)
        return None if table is None else table.agreement[name].mean_difference.value

    return ask.over_blocks(error, f"fewer than three cells of a block have both {name} and a measured gain")


# --- inside a run -----------------------------------------------------------------------------------


def _last_share_of_gain(ask: Ask) -> Estimate:
    """Return the share of the validation gain, from the first validation on, that the `last` share of steps made."""
    last, metric = ask.setting("last", 0.15), ask.of_group.metric
    found: list[float | None] = []
    for record in ask.arm(str(ask.claim.arm)).values():
        rows = [r for r in ask.evidence.lines(record, HISTORY) if metric in (r.get("validation") or {})]
        before = [r for r in rows if r["step"] <= (1 - last) * rows[-1]["step"]]
        if len(before) < 2:
            raise UnmeasuredError(
                f"could not be measured: too few validations before the last {100 * last:.0f} % of the steps"
            )
        first, middle, end = (float(r["validation"][metric]) for r in (rows[0], before[-1], rows[-1]))
        whole = better_by(metric, end, first)
        found.append(better_by(metric, end, middle) / whole if whole > 0 else None)
    return mean_over(found, "validation did not improve")


def _rank_stability(ask: Ask) -> Estimate:
    """Return the least Spearman correlation of submodule norms between the blueprints of one run, over blocks."""
    told = [record.notes.get("blueprint_ranks") for record in ask.arm(str(ask.claim.arm)).values()]
    values = [
        min((v for v in found.values() if isinstance(v, int | float)), default=None)
        if isinstance(found, dict)
        else None
        for found in told
    ]
    return mean_over(values, "the run took no blueprints on its way")


def _rank_share(ask: Ask) -> Estimate:
    """Return the least rank that holds `mass` of the squares of T, as a share of its submodules (eq. 33)."""
    mass = ask.setting("mass", 0.9)
    found: list[float | None] = []
    for record in ask.arm(str(ask.claim.arm)).values():
        told = record.notes.get("cross_influence")
        singular = told.get("singular_values") if isinstance(told, dict) else None
        found.append(_rank(singular, mass) if isinstance(singular, list) else None)
    return mean_over(found, "the run keeps no singular values of T")


def _rank(singular: Sequence[float], mass: float) -> float | None:
    squares = sorted((float(value) ** 2 for value in singular), reverse=True)
    total = math.fsum(squares)
    held = next((i for i in range(1, len(squares) + 1) if math.fsum(squares[:i]) >= mass * total * (1 - 1e-12)), 0)
    return held / len(squares) if total > 0 else None


@dataclass(frozen=True)
class Measure:
    """A statistic: how it is computed, what it takes, and what a line of help says."""

    of: Callable[[Ask], Estimate]
    help: str
    arm: bool = False
    arms: bool = False
    files: bool = False  # of files about models instead of runs
    settings: Mapping[str, tuple[str, ...] | None] | None = None  # name -> the words it may be, None for a share

    @property
    def unit(self) -> str:
        """What is counted as one observation."""
        return "models" if self.files else "blocks"


MEASURES: dict[str, Measure] = {
    "retained_gain": Measure(_retained_gain, "gain of arm / gain of reference", arm=True),
    "multiple_of_full": Measure(_multiple_of_full, "gain per resource as a multiple of reference's", arm=True),
    "gain_difference": Measure(_gain_difference, "psi of arm less psi of reference", arm=True),
    "cost_ratio": Measure(_cost_ratio, "cost of arm / cost of reference", arm=True),
    "gain_exponent": Measure(_gain_exponent, "x of gain ~ share^x over arms", arms=True, settings={"over": ("k", "q")}),
    "cost_line_r_squared": Measure(
        _cost_line_r_squared, "R^2 of cost = a + b share over arms", arms=True, settings={"over": ("k", "q")}
    ),
    "best_share_distance": Measure(_best_share_distance, "|log2(k* of eq. 15 / best k measured)|", arms=True),
    "cost_model_error": Measure(
        _cost_model_error, "relative error of a cost model", arms=True, settings={"model": ("additive", "product")}
    ),
    "prediction_error": Measure(
        _prediction_error, "mean |predicted - measured| retained gain", settings={"prediction": PREDICTIONS}
    ),
    "last_share_of_gain": Measure(
        _last_share_of_gain, "share of the gain made by the last steps", arm=True, settings={"last": None}
    ),
    "rank_stability": Measure(_rank_stability, "least rank correlation of blueprints on the way", arm=True),
    "rank_share": Measure(_rank_share, "rank of T / its submodules", arm=True, settings={"mass": None}),
    "top_mass": Measure(
        file_measures.top_mass, "mass of the top share of scalars", files=True, settings={"share": None}
    ),
    "power_law_share": Measure(
        file_measures.power_law_share, "share of submodules that follow a power law", files=True
    ),
    "influence_share": Measure(
        file_measures.influence_share,
        "squared norm held by middle attention cells",
        files=True,
        settings={"share": None},
    ),
    "domain_lean": Measure(
        file_measures.domain_lean,
        "late feed-forward share in a domain / in another",
        files=True,
        settings={"domain": (), "reference_domain": ()},
    ),
    "fisher_rank_correlation": Measure(
        file_measures.fisher_rank_correlation, "Spearman of norms and Fisher influence", files=True
    ),
    "power_law_of_examples": Measure(
        file_measures.power_law_of_examples, "whether J(z) follows a power law", files=True
    ),
}


def is_exact(statistic: str, resource: str) -> bool:
    """Return whether a statistic has no noise of measurement: then every block has to say the same."""
    return statistic == "cost_ratio" and resource in COUNTED


def check(measure: Measure, resource: str, settings: Mapping[str, object]) -> None:
    """Raise ValueError for a resource or settings that a statistic does not have."""
    if resource not in AXES:
        raise ValueError(f"unknown resource {resource!r}. {did_you_mean(resource, AXES)}")
    known = measure.settings or {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"unknown setting {name!r}. " + (did_you_mean(name, known) if known else "It takes none."))
        words = known[name]
        if words is None and not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1):
            raise ValueError(f"settings.{name} = {value!r}: a share between 0 and 1")
        if words and value not in words:
            raise ValueError(f"settings.{name} = {value!r}: {' or '.join(words)}")
