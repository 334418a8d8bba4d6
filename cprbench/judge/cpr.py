"""Gain, retained gain, multiple of full and quadrant, per arm: the only formulas (DESIGN section 1, cpr).

A gain is measured on the primary metric against method `head` of the same block where the model got a new random
head, else against the untouched base. Intervals are judge/statistics.py's: points below three blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cprbench.judge import statistics
from cprbench.judge.frontier import quadrant
from cprbench.judge.groups import (
    NOT_MEASURED,
    Figure,
    Predictions,
    ended_well,
    grouped,
    mean,
    runs_by_arm,
    score_of,
    trained_share_of,
)
from cprbench.judge.statistics import Estimate, Scored
from cprbench.spec import RESOURCES, RunRecord, better_by

FULL_GAIN = "n/e: full_gain_not_positive"
_UNREAD = statistics.ItemError(None, "the predictions were not read")
#: A multiple of full rewards doing less, so it ranks only where this share of full's gain is kept: our choice.
CAPABILITY_FLOOR = 0.5
#: Costs without noise of measurement: the same run anywhere spends the same.
COUNTED = ("flops", "trained_parameters", "optimizer_state_bytes", "selected_examples")
#: All that runs can be compared by besides psi.
AXES = (*RESOURCES, "seconds", "peak_memory_bytes", *COUNTED[1:])


@dataclass(frozen=True)
class ArmResult:
    """One arm of a group over its blocks."""

    arm: str
    method: str
    blocks: tuple[int, ...]
    failed: int
    base: Figure
    final: Estimate
    finals: tuple[float, ...]  # per block, in order of blocks
    reference: Figure
    gain: Estimate
    gamma: dict[str, Figure]  # mean per resource
    seconds: Figure
    retained_gain: Estimate
    multiple_of_full: dict[str, Estimate]
    against_full: Estimate  # psi less full's, oriented so that more is better, paired by block
    cost_of_full: dict[str, Estimate]  # geometric mean of cost / full's cost, paired by block
    quadrant: dict[str, str]  # against full, by resource: a quadrant, or why there is none
    floor: str | None  # why it is below the capability floor, None where it is above
    trained_share: Figure
    trials: int  # of the learning-rate search; its cost stands in search_seconds
    search_seconds: Figure
    search_at_edge: bool  # the best rate was the least or the largest tried


@dataclass(frozen=True)
class Group:
    """Arms that may be compared with one another."""

    key: dict[str, Any]
    metric: str
    reference: str  # "head" or "base"
    arms: tuple[ArmResult, ...]
    failures: tuple[RunRecord, ...]
    records: tuple[RunRecord, ...]


def compare(records: Iterable[RunRecord], predictions: Predictions | None = None) -> list[Group]:
    """Return the groups of comparable runs, each with its arms. Trials of a search only enter the search column.

    `predictions` gives the intervals their item error (Evidence.predictions); without it they are of blocks alone.
    """
    records = list(records)
    trials = {r.run_id: r for r in records if r.role == "search"}
    return [_group(key, runs, trials, predictions) for key, runs in grouped(records)]


def _group(
    key: dict[str, Any],
    records: Sequence[RunRecord],
    trials: dict[str, RunRecord],
    predictions: Predictions | None,
) -> Group:
    metric = records[0].psi.primary
    by_arm = runs_by_arm(records)
    head, full = (ended_well(by_arm.get(arm, {})) for arm in ("head", "full"))
    # The reference depends on the model alone: a group without its head arm has no gain, never another one.
    new_head = any(r.new_head_parameters for r in records)
    names = sorted(by_arm, key=lambda arm: (_rank(arm), arm))
    table = Comparison(metric, head if new_head else None, full, predictions)
    arms = tuple(_arm(name, list(by_arm[name].values()), table, trials) for name in names)
    failures = tuple(sorted((r for r in records if r.status != "ok"), key=lambda r: r.run_id))
    ordered = tuple(sorted(records, key=lambda r: r.run_id))
    return Group(key, metric, "head" if new_head else "base", arms, failures, ordered)


def _rank(arm: str) -> int:
    first = arm.partition(" ")[0]
    return ("head", "full", "lora", "qlora").index(first) if first in ("head", "full", "lora", "qlora") else 9


@dataclass(frozen=True)
class Comparison:
    """What the arms of a group are measured against. Runs are block -> run that ended well."""

    metric: str
    head: Mapping[int, RunRecord] | None  # None where gains are measured against the run's own base
    full: Mapping[int, RunRecord]
    predictions: Predictions | None = None
    _kept: dict[tuple[int, str], Scored] = field(default_factory=dict, repr=False, compare=False)

    def gains(self, runs: Mapping[int, RunRecord]) -> dict[int, float]:
        """Return block -> gain, empty unless every block has one: a mean over fewer would be another arm's."""
        return block_gains(runs, self.metric, self.head)

    def psi(self, runs: Mapping[int, RunRecord]) -> Estimate:
        """Return the mean psi after adaptation."""
        scores = [score_of(r, self.metric, "final") for r in runs.values()]
        known = [value for value in scores if value is not None]
        if not known or len(known) < len(scores):
            return Estimate(None, why="no psi was given" if runs else "no run ended well")
        rows = [(self._scored(r, "final"), None) for r in runs.values()]
        items = statistics.gain_covariance(self.metric, rows) if self.predictions else _UNREAD
        return self._told(statistics.mean_difference(known, items.variance or 0.0), items)

    def gain(self, runs: Mapping[int, RunRecord]) -> Estimate:
        """Return the mean gain."""
        gains = self.gains(runs)
        if not gains:
            return Estimate(None, why=self._no_gain(runs))
        items = self._items(runs)
        return self._told(statistics.mean_difference(list(gains.values()), items.variance or 0.0), items)

    def difference(self, runs: Mapping[int, RunRecord], other: Mapping[int, RunRecord]) -> Estimate:
        """Return how much better psi is than that of other runs of the same blocks."""
        pairs = [
            (score_of(runs[b], self.metric, "final"), score_of(other[b], self.metric, "final"))
            for b in runs
            if b in other
        ]
        if not runs or len(pairs) < len(runs) or any(None in pair for pair in pairs):
            return Estimate(None, why="no run to compare with in every block")
        rows = [(self._scored(runs[b], "final"), self._scored(other[b], "final")) for b in runs]
        items = statistics.gain_covariance(self.metric, rows) if self.predictions else _UNREAD
        differences = [better_by(self.metric, a, b) for a, b in pairs if a is not None and b is not None]
        return self._told(statistics.mean_difference(differences, items.variance or 0.0), items)

    def retained(self, runs: Mapping[int, RunRecord]) -> Estimate:
        """Return mean gain / mean gain of full, over the same blocks."""
        return self._ratio(runs, None)

    def multiple(self, runs: Mapping[int, RunRecord], resource: str) -> Estimate:
        """Return how many times full tuning's gain per resource an arm reaches, paired by block.

        mean g / mean(g_full,b * gamma_b / gamma_full,b). Negative gains have none: -1/10 would beat -1/1.
        """
        return self._ratio(runs, resource)

    def _no_gain(self, runs: Mapping[int, RunRecord]) -> str:
        if not runs:
            return "no run ended well"
        scored = any(score_of(r, self.metric, "final") is not None for r in runs.values())
        return "no head run in every block" if self.head is not None and scored else "no psi was given"

    def _ratio(self, runs: Mapping[int, RunRecord], resource: str | None) -> Estimate:
        gains = self.gains(runs)
        if not gains:
            return Estimate(None, why=self._no_gain(runs))
        of = {block: self.full[block] for block in gains if block in self.full}
        full = self.gains(of)
        if len(full) < len(gains):
            return Estimate(None, why="no full run in every block")
        scales = dict.fromkeys(gains, 1.0)
        if resource is not None:
            costs = {block: (cost_of(runs[block], resource), cost_of(of[block], resource)) for block in gains}
            if any(None in pair for pair in costs.values()):
                return Estimate(None, why=NOT_MEASURED)
            if why := of_two_kinds(resource, [*runs.values(), *of.values()]):
                return Estimate(None, why=why)
            scales = {b: own / theirs if theirs else 0.0 for b, (own, theirs) in costs.items()}  # type: ignore[operator]
        own_full = runs.keys() <= self.full.keys() and all(runs[b].run_id == of[b].run_id for b in gains)
        items = self._items(runs, of, [scales[b] for b in gains])
        if not own_full and (why := self._full_gain(full, of)):
            return Estimate(None, why=why, n=len(gains))
        if resource is not None and sum(gains.values()) <= 0:
            return Estimate(None, why="n/e: gain_not_positive", n=len(gains))
        if not all(scales.values()):
            return Estimate(None, why="n/e: cost_is_zero", n=len(gains))
        if sum(full.values()) <= 0:
            return Estimate(None, why=FULL_GAIN, n=len(gains))
        if own_full:
            return Estimate(1.0, why="full tuning itself", n=len(gains))
        scaled = [full[b] * scales[b] for b in gains]
        found = statistics.ratio_of_means(list(gains.values()), scaled, items.covariance)
        return replace(found, why=FULL_GAIN) if found.why == statistics.DENOMINATOR else self._told(found, items)

    def _told(self, found: Estimate, items: statistics.ItemError) -> Estimate:
        """Return an estimate that says where its interval lacks the error of the items, though it was asked for."""
        return found if self.predictions is None or items.why is None else replace(found, no_items=items.why)

    def _full_gain(self, full: Mapping[int, float], of: Mapping[int, RunRecord]) -> str | None:
        """Return FULL_GAIN where full's own gain is not above zero for certain."""
        own = statistics.mean_difference(list(full.values()), self._items(of).variance or 0.0)
        return FULL_GAIN if own.low is not None and own.low <= 0 else None

    def _items(
        self,
        runs: Mapping[int, RunRecord],
        of: Mapping[int, RunRecord] | None = None,
        scales: Sequence[float] | None = None,
    ) -> statistics.ItemError:
        if self.predictions is None:
            return _UNREAD
        full = None if of is None else [self._pair(record) for record in of.values()]
        return statistics.gain_covariance(self.metric, [self._pair(r) for r in runs.values()], full, scales)

    def _pair(self, record: RunRecord) -> tuple[Scored, Scored]:
        """Return the predictions of a run and of what its gain is measured against."""
        if self.head is None:
            return self._scored(record, "final"), self._scored(record, "base")
        return self._scored(record, "final"), self._scored(self.head[record.block], "final")

    def _scored(self, record: RunRecord, when: str) -> Scored:
        if (key := (id(record), when)) not in self._kept:
            rows = self.predictions(record, when) if self.predictions is not None else []
            self._kept[key] = Scored(self.metric, rows, record.psi.items)
        return self._kept[key]


def _arm(name: str, records: Sequence[RunRecord], table: Comparison, trials: dict[str, RunRecord]) -> ArmResult:
    metric = table.metric
    ok = ended_well({r.block: r for r in records})
    unscored = "no psi was given" if ok else "no run ended well"
    finals = {block: value for block, r in ok.items() if (value := score_of(r, metric, "final")) is not None}
    references = {block: value for block, r in ok.items() if (value := _before(r, metric, table.head)) is not None}
    no_reference = "no head run in every block" if table.head is not None and finals else unscored
    named = {i for r in ok.values() if r.search is not None for i in r.search.runs}
    # A trial is paid for even where the run that it chose the rate for was stored before.
    trial_ids = sorted(named | {i for r in ok.values() for i, t in trials.items() if _tried_for(t, r)})
    gain, kept = table.gain(ok), table.retained(ok)
    costs = {name: cost_ratio(ok, table.full, name) for name in RESOURCES}
    against = table.difference(ok, table.full)
    floor = floor_of(gain, kept)
    return ArmResult(
        arm=name,
        method=records[0].spec.method.name,
        blocks=tuple(ok),
        failed=len(records) - len(ok),
        base=mean([score_of(r, metric, "base") for r in ok.values()], unscored),
        final=table.psi(ok),
        finals=tuple(finals.values()),
        reference=mean([references.get(block) for block in ok], no_reference),
        gain=gain,
        gamma={name: _mean_cost(ok, name) for name in RESOURCES},
        seconds=_mean_cost(ok, "seconds"),
        retained_gain=kept,
        multiple_of_full={name: table.multiple(ok, name) for name in RESOURCES},
        against_full=against,
        cost_of_full=costs,
        quadrant={name: _quadrant(gain, against, cost, floor) for name, cost in costs.items()},
        floor=floor,
        trained_share=mean([trained_share_of(r) for r in ok.values()], "not told" if ok else "no run ended well"),
        trials=len(trial_ids),
        search_at_edge=any(r.search is not None and r.search.best_at_edge for r in ok.values()),
        search_seconds=_search_seconds(
            trial_ids, trials, {str(r.notes.get("learning_rate_from")) for r in ok.values()}
        ),
    )


def _mean_cost(runs: Mapping[int, RunRecord], axis: str) -> Figure:
    if not runs:
        return Figure.none("no run ended well")
    if why := of_two_kinds(axis, list(runs.values())):
        return Figure.none(why)
    return mean([cost_of(record, axis) for record in runs.values()], NOT_MEASURED)


def _tried_for(trial: RunRecord, run: RunRecord) -> bool:
    same = (trial.spec.task, trial.spec.model.weights_sha256, trial.arm) == (
        run.spec.task,
        run.spec.model.weights_sha256,
        run.arm,
    )
    return same and run.notes.get("learning_rate_from") != "given"


def _search_seconds(ids: Sequence[str], trials: dict[str, RunRecord], rates_from: set[str]) -> Figure:
    if not ids:
        words = {"given": "none (given rate)", "declared": "none (declared rate)"}
        return Figure.none(", ".join(sorted(words.get(name, "not told") for name in rates_from)) or "not told")
    if any(i not in trials for i in ids):
        return Figure.none("the records of its trials are not here")
    spent = [trials[i].seconds.get("billed") for i in ids]
    if any(value is None for value in spent):
        return Figure.none(NOT_MEASURED)
    return Figure(sum(value for value in spent if value is not None))


def _before(record: RunRecord, metric: str, head: Mapping[int, RunRecord] | None) -> float | None:
    """Return what a gain is measured against: method head of the same block, or the run's own base."""
    if head is None:
        return score_of(record, metric, "base")
    return score_of(head[record.block], metric, "final") if record.block in head else None


def block_gains(runs: Mapping[int, RunRecord], metric: str, head: Mapping[int, RunRecord] | None) -> dict[int, float]:
    """Return block -> gain of runs that ended well; `head` is None where gains are measured against the base.

    Empty unless every block has one: a mean over fewer blocks than the row shows would be another arm's.
    """
    gains = {}
    for block, record in runs.items():
        before, after = _before(record, metric, head), score_of(record, metric, "final")
        if before is None or after is None:
            return {}
        gains[block] = better_by(metric, after, before)
    return gains


def cost_of(record: RunRecord, axis: str) -> float | None:
    """Return what a run spent on an axis: a resource of gamma, billed `seconds`, or a count or peak of the record."""
    if axis in RESOURCES:
        value = getattr(record.gamma, axis)
    else:
        value = record.seconds.get("billed") if axis == "seconds" else getattr(record, axis)
    return None if value is None else float(value)


def of_two_kinds(axis: str, records: Sequence[RunRecord]) -> str | None:
    """Return why these runs measured different things on an axis: energy of other parts, memory by another meter."""
    word = {"energy_kwh": "energy_scope", "co2_kg": "energy_scope"}.get(axis)
    word = word or {"memory_gb_hours": "memory_basis", "peak_memory_bytes": "memory_basis"}.get(axis)
    kinds = sorted({str(getattr(record.gamma, word)) for record in records}) if word else []
    return f"{axis} is of {len(kinds)} kinds ({', '.join(kinds)})" if len(kinds) > 1 else None


def cost_ratio(runs: Mapping[int, RunRecord], others: Mapping[int, RunRecord], axis: str) -> Estimate:
    """Return the geometric mean of cost / cost of the other run of the same block."""
    if not runs or any(block not in others for block in runs):
        return Estimate(None, why="no run to compare with in every block")
    pairs = [(cost_of(runs[block], axis), cost_of(others[block], axis)) for block in runs]
    known = [(own, other) for own, other in pairs if own is not None and other is not None]
    if len(known) < len(pairs):
        return Estimate(None, why=NOT_MEASURED)
    if why := of_two_kinds(axis, [*runs.values(), *(others[block] for block in runs)]):
        return Estimate(None, why=why)
    return statistics.cost_ratio(*zip(*known, strict=True), counted=axis in COUNTED)


def floor_of(gain: Estimate, retained: Estimate) -> str | None:
    """Return why an arm is no capability that a multiple or a quadrant may speak for, None where it is one."""
    if retained.value is None:
        return retained.why
    if retained.value < CAPABILITY_FLOOR * (1 - 1e-9):  # half of a gain may be a hair less in floating point
        return f"keeps less than {100 * CAPABILITY_FLOOR:.0f} % of full's gain"
    within = gain.se is not None and (gain.value or 0.0) < 2 * gain.se
    return "its gain is within two standard errors of 0" if within else None


def _quadrant(gain: Estimate, against: Estimate, cost: Estimate, floor: str | None) -> str:
    # What gains for certain, and more than full does, is a capability, whether or not full's own gain is one.
    above = floor is None or ((gain.low or 0.0) > 0 and (against.low or 0.0) > 0)
    found = quadrant(against, cost, above_floor=above)
    if found.value is None:
        return str(found.why)
    return found.value if found.why is None else f"{found.value}: {found.why}"
