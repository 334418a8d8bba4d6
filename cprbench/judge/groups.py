"""Which runs may be compared with one another, and what a run says: no formula of cpr is here.

Runs are compared inside a group: same task version, weights, hardware class, limits, recipe and number of processes.
Suites with the same limits and recipe share one, and so do their versions, since a stored run serves every suite that
asks for it: what a version changes in limits, recipe or task sets its runs apart, and other arms are other rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cprbench.schema import sha256_of
from cprbench.spec import RunRecord

#: Why an arm has no number of a resource.
NOT_MEASURED = "not measured"

#: predictions(record, "base" or "final") -> the rows of its predictions, [] where they are not stored.
Predictions = Callable[[RunRecord, str], Sequence[Mapping[str, Any]]]


class Told(Protocol):
    """What pages write: a number, or the reason why there is none."""

    @property
    def value(self) -> float | None: ...
    @property
    def why(self) -> str | None: ...


@dataclass(frozen=True)
class Figure:
    """A number, or None with the reason why there is none."""

    value: float | None
    why: str | None = None

    @classmethod
    def none(cls, why: str) -> Figure:
        """Return the absence of a number, with its reason."""
        return cls(None, why)

    @classmethod
    def of(cls, told: Told) -> Figure:
        """Return what an estimate says, without its interval."""
        return cls(told.value, told.why if told.value is None else None)


def mean(values: Sequence[float | None], why: str) -> Figure:
    """Return the mean, or the reason as soon as one value is missing: a mean of the rest would flatter."""
    known = [value for value in values if value is not None]
    return Figure(sum(known) / len(known)) if known and len(known) == len(values) else Figure.none(why)


def grouped(records: Iterable[RunRecord]) -> list[tuple[dict[str, Any], list[RunRecord]]]:
    """Return (what they share, runs) of every group, without trials of a search and without runs that were repeated."""
    classes: dict[str, list[RunRecord]] = defaultdict(list)
    keys: dict[str, dict[str, Any]] = {}
    for record in latest(r for r in records if r.role != "search"):
        key = group_key(record)
        keys[sha256_of(key)] = key
        classes[sha256_of(key)].append(record)
    found = [({**keys[name], "suites": _suites(runs)}, runs) for name, runs in classes.items()]
    return sorted(
        found, key=lambda pair: (pair[0]["task"], pair[0]["model"], str(pair[0]["suites"]), sha256_of(pair[0]))
    )


def _suites(records: Sequence[RunRecord]) -> list[str]:
    return sorted({f"{r.suite} v{r.suite_version}" for r in records if r.suite})


def group_key(record: RunRecord) -> dict[str, Any]:
    """Return what two runs must share to be compared."""
    training = record.spec.training
    recipe = None if training is None else training.model_dump(exclude={"learning_rate"})
    return {
        "task": record.spec.task.name,
        "task_version": record.spec.task.version,
        "data_sha256": record.spec.task.data_sha256,
        "model": record.spec.model.label,
        "weights_sha256": record.spec.model.weights_sha256,
        "hardware_class": record.environment.hardware_class,
        "processes": _processes(record),
        "limits": record.limits,
        "role": record.role,
        "loop": record.loop,
        "memory_basis": record.gamma.memory_basis,
        "recipe": recipe,
    }


def _processes(record: RunRecord) -> int:
    """Return how many processes trained together; facts are a free table, and what is no count there says nothing."""
    told = record.environment.facts.get("processes", 1)
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else 1


def latest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records without those that did not end well and that a later one repeats."""
    records = list(records)
    repeated = {r.previous for r in records if r.previous is not None}
    return [r for r in records if r.status == "ok" or r.run_id not in repeated]


def runs_by_arm(records: Iterable[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Return arm -> block -> run, failed ones included, named as a group's arms are.

    A label whose runs were asked for different things, or have a block twice, is several arms: a mean mixes nothing,
    and nobody chooses. The one with the most blocks keeps the plain name.
    """
    alike: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in sorted(
        records, key=lambda r: (r.status != "ok", r.notes.get("learning_rate_from") == "given", r.run_id)
    ):
        alike[record.arm, sha256_of(recipe_of(record))].append(record)
    by_arm: dict[str, dict[int, RunRecord]] = {}
    for (label, _), runs in sorted(alike.items(), key=lambda item: -len({r.block for r in item[1]})):
        arm = label if label not in by_arm else _told_apart(runs[0])
        for record in runs:
            row = by_arm.setdefault(arm, {})
            if record.block in row:  # the same arm and block twice is two rows, never one of them
                row = by_arm.setdefault(_told_apart(record), {})
            row[record.block] = record
    return by_arm


def _told_apart(record: RunRecord) -> str:
    rate = "" if record.spec.training is None else f"lr={record.spec.training.learning_rate:g}, "
    return f"{record.arm} ({rate}{record.run_id})"


def recipe_of(record: RunRecord) -> list[Any]:
    """Return what all blocks of one arm have in common besides their group: its name alone leaves some of it out."""
    spec, training = record.spec, record.spec.training
    chosen = dict(spec.selection.settings)
    if chosen.get("flops_of"):
        chosen.pop("flops", None)  # the bill that it follows is another one in every block
    budget = None if spec.budget is None else spec.budget.model_dump(exclude={"amount"} if spec.budget.of else None)
    stop = None if spec.stop is None else spec.stop.model_dump()
    searched = training is None or record.notes.get("learning_rate_from") == "searched"
    rate = None if searched or training is None else training.learning_rate
    return [spec.method.name, spec.method.settings, spec.selection.name, chosen, stop, budget, rate]


def ended_well(runs: Mapping[int, RunRecord]) -> dict[int, RunRecord]:
    """Return the runs of an arm that ended well, in the order of their blocks."""
    return {block: runs[block] for block in sorted(runs) if runs[block].status == "ok"}


def trained_share_of(record: RunRecord) -> float | None:
    """Return the share of N that trains, the new head on neither side; None where it is not told."""
    if record.trained_parameters is None or not record.total_parameters:
        return None
    return record.trained_parameters / record.total_parameters


def k_of(record: RunRecord) -> float | None:
    """Return the share of N that trains: all for full, the k-set's, else what trains (adapters)."""
    if record.spec.method.name == "full":
        return 1.0
    return trained_share_of(record) if record.k_reached is None else record.k_reached


def q_of(record: RunRecord) -> float | None:
    """Return the share of the training examples that is used, as reached; None where it is not told."""
    told = record.notes.get("selection")
    reached = told.get("q_reached") if isinstance(told, dict) else None
    if isinstance(reached, int | float) and not isinstance(reached, bool) and 0 < reached <= 1:
        return float(reached)  # notes are free tables: what is no share is not told
    return 1.0 if record.spec.selection.name == "all" else None


def score_of(record: RunRecord, metric: str, when: str) -> float | None:
    """Return psi by `metric`, "base" or "final"; None where it was not scored."""
    scores = getattr(record.psi, when)
    return None if scores is None else scores.get(metric)
