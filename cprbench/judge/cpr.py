"""Gain, retained gain and multiple of full, per arm: the only formulas (DESIGN section 1, cpr).

A gain is measured on the primary metric against method `head` of the same block where the model got a new random
head, else against the untouched base. Runs are compared only inside a group: same task version, weights,
hardware class, limits and recipe. Points only: intervals need three blocks and come with the statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprbench.schema import sha256_of
from cprbench.spec import RESOURCES, RunRecord, better_by

#: Why an arm has no cpr on a resource.
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """A number, or None with the reason why there is none."""

    value: float | None
    why: str | None = None

    @classmethod
    def none(cls, why: str) -> Figure:
        """Return the absence of a number, with its reason."""
        return cls(None, why)


@dataclass(frozen=True)
class ArmResult:
    """One arm of a group over its blocks."""

    arm: str
    method: str
    blocks: tuple[int, ...]
    failed: int
    base: Figure
    final: Figure
    finals: tuple[float, ...]  # per block, in order of blocks
    reference: Figure
    gain: Figure
    gamma: dict[str, Figure]  # mean per resource
    seconds: Figure
    retained_gain: Figure
    multiple_of_full: dict[str, Figure]
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


def compare(records: Iterable[RunRecord]) -> list[Group]:
    """Return the groups of comparable runs, each with its arms. Trials of a search only enter the search column."""
    records = list(records)
    trials = {r.run_id: r for r in records if r.role == "search"}
    grouped: dict[str, list[RunRecord]] = defaultdict(list)
    keys: dict[str, dict[str, Any]] = {}
    for record in _latest(r for r in records if r.role != "search"):
        key = group_key(record)
        keys[sha256_of(key)] = key
        grouped[sha256_of(key)].append(record)
    order = sorted(grouped, key=lambda h: (keys[h]["task"], keys[h]["model"], str(keys[h]["suite"]), h))
    return [_group(keys[h], grouped[h], trials) for h in order]


def group_key(record: RunRecord) -> dict[str, Any]:
    """Return what two runs must share to be compared."""
    training = record.spec.training
    recipe = None if training is None else training.model_dump(exclude={"learning_rate"})
    named = record.suite if record.role == "run" else None
    return {
        "task": record.spec.task.name,
        "task_version": record.spec.task.version,
        "data_sha256": record.spec.task.data_sha256,
        "model": record.spec.model.label,
        "weights_sha256": record.spec.model.weights_sha256,
        "hardware_class": record.environment.hardware_class,
        "processes": record.environment.facts.get("processes", 1),
        "suite": named,
        "suite_version": record.suite_version if named else None,
        "limits": record.limits,
        "role": record.role,
        "loop": record.loop,
        "memory_basis": record.gamma.memory_basis,
        "recipe": recipe,
    }


def _latest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records without those that a later one repeats."""
    records = list(records)
    repeated = {r.previous for r in records if r.previous is not None}
    return [r for r in records if r.run_id not in repeated]


def _group(key: dict[str, Any], records: Sequence[RunRecord], trials: dict[str, RunRecord]) -> Group:
    metric = records[0].psi.primary
    by_arm = runs_by_arm(records)
    head, full = (ended_well(by_arm.get(arm, {})) for arm in ("head", "full"))
    # The reference depends on the model alone: a group without its head arm has no gain, never another one.
    new_head = any(r.new_head_parameters for r in records)
    names = sorted(by_arm, key=lambda arm: (_rank(arm), arm))
    arms = tuple(
        _arm(name, list(by_arm[name].values()), metric, head if new_head else None, full, trials) for name in names
    )
    failures = tuple(sorted((r for r in records if r.status != "ok"), key=lambda r: r.run_id))
    ordered = tuple(sorted(records, key=lambda r: r.run_id))
    return Group(key, metric, "head" if new_head else "base", arms, failures, ordered)


def runs_by_arm(records: Iterable[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Return arm -> block -> run, failed ones included, named as a group's arms are."""
    by_arm: dict[str, dict[int, RunRecord]] = defaultdict(dict)
    for record in sorted(
        records, key=lambda r: (r.status != "ok", r.notes.get("learning_rate_from") == "given", r.run_id)
    ):
        arm = record.arm
        if record.block in by_arm[arm]:  # the same arm and block twice is two rows, never one of them
            rate = "" if record.spec.training is None else f"lr={record.spec.training.learning_rate:g}, "
            arm = f"{record.arm} ({rate}{record.run_id})"
        by_arm[arm][record.block] = record
    return dict(by_arm)


def ended_well(runs: Mapping[int, RunRecord]) -> dict[int, RunRecord]:
    """Return the runs of an arm that ended well, in the order of their blocks."""
    return {block: runs[block] for block in sorted(runs) if runs[block].status == "ok"}


def _rank(arm: str) -> int:
    first = arm.partition(" ")[0]
    return ("head", "full", "lora", "qlora").index(first) if first in ("head", "full", "lora", "qlora") else 9


def _arm(
    name: str,
    records: Sequence[RunRecord],
    metric: str,
    head: dict[int, RunRecord] | None,
    full: dict[int, RunRecord],
    trials: dict[str, RunRecord],
) -> ArmResult:
    ok = ended_well({r.block: r for r in records})
    unscored = "no psi was given" if ok else "no run ended well"
    finals = {block: value for block, r in ok.items() if (value := _score(r, metric, "final")) is not None}
    references = {block: value for block, r in ok.items() if (value := _before(r, metric, head)) is not None}
    gains = block_gains(ok, metric, head)
    no_reference = "no head run in every block" if head is not None and finals else unscored
    named = {i for r in ok.values() if r.search is not None for i in r.search.runs}
    # A trial is paid for even where the run that it chose the rate for was stored before.
    trial_ids = sorted(named | {i for r in ok.values() for i, t in trials.items() if _tried_for(t, r)})
    return ArmResult(
        arm=name,
        method=records[0].spec.method.name,
        blocks=tuple(ok),
        failed=len(records) - len(ok),
        base=mean([_score(r, metric, "base") for r in ok.values()], unscored),
        final=mean([_score(r, metric, "final") for r in ok.values()], unscored),
        finals=tuple(finals.values()),
        reference=mean([references.get(block) for block in ok], no_reference),
        gain=mean(list(gains.values()), no_reference),
        gamma={name: mean([getattr(r.gamma, name) for r in ok.values()], NOT_MEASURED) for name in RESOURCES},
        seconds=mean([r.seconds.get("billed") for r in ok.values()], NOT_MEASURED),
        retained_gain=retained(gains, full, head, metric) if gains else Figure.none(no_reference),
        multiple_of_full={
            name: _multiple(gains, ok, full, head, metric, name) if gains else Figure.none(no_reference)
            for name in RESOURCES
        },
        trained_share=mean([trained_share_of(r) for r in ok.values()], "not told" if ok else "no run ended well"),
        trials=len(trial_ids),
        search_at_edge=any(r.search is not None and r.search.best_at_edge for r in ok.values()),
        search_seconds=_search_seconds(
            trial_ids, trials, {str(r.notes.get("learning_rate_from")) for r in ok.values()}
        ),
    )


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


def trained_share_of(record: RunRecord) -> float | None:
    """Return the share of N that trains, the new head on neither side; None where it is not told."""
    if record.trained_parameters is None or not record.total_parameters:
        return None
    return record.trained_parameters / record.total_parameters


def _score(record: RunRecord, metric: str, when: str) -> float | None:
    scores = getattr(record.psi, when)
    return None if scores is None else scores.get(metric)


def _before(record: RunRecord, metric: str, head: Mapping[int, RunRecord] | None) -> float | None:
    """Return what a gain is measured against: method head of the same block, or the run's own base."""
    if head is None:
        return _score(record, metric, "base")
    return _score(head[record.block], metric, "final") if record.block in head else None


def mean(values: Sequence[float | None], why: str) -> Figure:
    """Return the mean, or the reason as soon as one value is missing: a mean of the rest would flatter."""
    known = [value for value in values if value is not None]
    return Figure(sum(known) / len(known)) if known and len(known) == len(values) else Figure.none(why)


def block_gains(runs: Mapping[int, RunRecord], metric: str, head: Mapping[int, RunRecord] | None) -> dict[int, float]:
    """Return block -> gain of runs that ended well; `head` is None where gains are measured against the base.

    Empty unless every block has one: a mean over fewer blocks than the row shows would be another arm's.
    """
    gains = {}
    for block, record in runs.items():
        before, after = _before(record, metric, head), _score(record, metric, "final")
        if before is None or after is None:
            return {}
        gains[block] = better_by(metric, after, before)
    return gains


def _full_gains(
    blocks: Collection[int], full: Mapping[int, RunRecord], head: Mapping[int, RunRecord] | None, metric: str
) -> dict[int, float] | None:
    """Return full tuning's gain per block, None unless every block has it."""
    if any(block not in full for block in blocks):
        return None
    return block_gains({block: full[block] for block in blocks}, metric, head) or None


def retained(
    gains: dict[int, float], full: Mapping[int, RunRecord], head: Mapping[int, RunRecord] | None, metric: str
) -> Figure:
    """Return mean gain / mean gain of full, over the same blocks."""
    reference = _full_gains(gains, full, head, metric)
    if reference is None:
        return Figure.none("no full run in every block")
    if sum(reference.values()) <= 0:
        return Figure.none("n/e: full_gain_not_positive")
    return Figure(sum(gains.values()) / sum(reference.values()))


def _multiple(
    gains: dict[int, float],
    ok: dict[int, RunRecord],
    full: dict[int, RunRecord],
    head: dict[int, RunRecord] | None,
    metric: str,
    resource: str,
) -> Figure:
    """Return how many times full tuning's gain per resource an arm reaches, paired by block.

    mean g / mean(g_full,b * gamma_b / gamma_full,b). Negative gains have none: -1/10 would beat -1/1.
    """
    reference = _full_gains(gains, full, head, metric)
    if reference is None:
        return Figure.none("no full run in every block")
    costs = {block: getattr(ok[block].gamma, resource) for block in gains}
    full_costs = {block: getattr(full[block].gamma, resource) for block in gains}
    if any(value is None for value in (*costs.values(), *full_costs.values())):
        return Figure.none(NOT_MEASURED)
    if sum(reference.values()) <= 0:
        return Figure.none("n/e: full_gain_not_positive")
    if sum(gains.values()) <= 0:
        return Figure.none("n/e: gain_not_positive")
    if any(value == 0 for value in (*costs.values(), *full_costs.values())):
        return Figure.none("n/e: cost_is_zero")
    scaled = sum(reference[b] * costs[b] / full_costs[b] for b in gains)
    if scaled <= 0:
        return Figure.none("n/e: full_gain_not_positive")
    return Figure(sum(gains.values()) / scaled)
