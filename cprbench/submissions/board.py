"""Rows of the board, from runs that were validated: the numbers are judge's, what ranks is decided here.

A row is one arm of one group of comparable runs of one submission. It ranks where a suite with [ranking] asked for
just that, its blocks are all there, and its controls ran beside it (docs/submissions.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cprbench.judge.cpr import ArmResult, Group, compare
from cprbench.judge.groups import NOT_MEASURED, Figure, k_of, mean, q_of, runs_by_arm
from cprbench.judge.statistics import Scored, gain_covariance
from cprbench.judge.submission import Finding, Number, Row, RunLine, SubmissionSpec, Tier, told
from cprbench.runs.arms import arm_of
from cprbench.runs.store import PREDICTIONS
from cprbench.schema import sha256_of
from cprbench.spec import RESOURCES, RunRecord, RunSpec, SuiteSpec, TaskSpec
from cprbench.submissions.dossier import Dossier
from cprbench.submissions.known import arms_in, models, ranking, suites
from cprbench.tasks import training_for

#: Methods that a board marks as baselines, whatever their settings; random data is one under any method.
BASELINES = ("head", "full", "last-layers", "random-submodules")
_PICKERS = {"last-layers": "depth", "random-submodules": "random", "spectrum": "scan"}


def rows_of(spec: SubmissionSpec, dossiers: Sequence[Dossier], flaws: Mapping[str, Sequence[Finding]]) -> list[Row]:
    """Return the rows of a submission whose raw files contradict nothing. `flaws`: run id -> what was found of it."""
    by_id = {run.run_id: run for run in dossiers}

    def predictions(record: RunRecord, when: str) -> Sequence[Mapping[str, Any]]:
        run = by_id[record.run_id]
        if run.spec is None or isinstance(run.dataset, str):  # nothing says how many items and labels there can be
            return ()
        return by_id[record.run_id].rows(PREDICTIONS if when == "final" else f"base_{PREDICTIONS}")

    groups = compare([run.record for run in dossiers], predictions)
    board = _Board(spec, by_id, flaws, groups)
    rows = [board.row(group, arm, runs) for group in groups for arm, runs in _arms(group)]
    return sorted(rows, key=lambda row: row.id)


def _arms(group: Group) -> Iterator[tuple[ArmResult, dict[int, RunRecord]]]:
    runs = runs_by_arm(group.records)
    for arm in group.arms:
        yield arm, runs[arm.arm]


class _Board:
    """One submission on its way to rows."""

    def __init__(
        self,
        spec: SubmissionSpec,
        dossiers: Mapping[str, Dossier],
        flaws: Mapping[str, Sequence[Finding]],
        groups: Sequence[Group],
    ) -> None:
        self._spec, self._dossiers, self._flaws = spec, dossiers, flaws
        self._groups = groups

    def row(self, group: Group, arm: ArmResult, runs: Mapping[int, RunRecord]) -> Row:
        """Return one arm of a group as a row."""
        record = next(iter(runs.values()))
        ok = [run for _, run in sorted(runs.items()) if run.status == "ok"]
        suite = self._suite(group, arm.arm, record)
        task = self._dossiers[record.run_id].task
        selection, method = record.spec.selection, record.spec.method
        settings = dict(selection.settings)
        if settings.get("flops_of"):
            settings.pop("flops", None)  # the bill that it follows is another one in every block
        row: dict[str, Any] = {
            "suite": record.suite or "" if suite is None else str(suite.name),
            "suite_version": record.suite_version if suite is None else suite.version,
            "task": record.spec.task.name,
            "task_version": record.spec.task.version,
            "model": record.spec.model.label,
            "weights_sha256": record.spec.model.weights_sha256,
            "method": method.name,
            "settings": dict(method.settings),
            "selection": selection.name,
            "selection_settings": settings,
            "hardware_class": record.environment.hardware_class,
        }
        tier = self._tier(group, runs.values())
        return Row(
            **row,
            data_sha256=record.spec.task.data_sha256,
            id=sha256_of([self._spec.name, row, arm.arm, sorted(r.run_id for r in runs.values())])[:12],
            arm=arm.arm,
            domain="" if task is None else task.domain,
            metric=group.metric,
            reference=group.reference,
            baseline=method.name in BASELINES or selection.name == "random",
            role=record.role,
            tier=tier,
            unranked=list(dict.fromkeys(self._unranked(group, arm, runs, suite, tier))),
            blocks=list(arm.blocks),
            failed=arm.failed,
            psi=told(arm.final),
            gain=told(arm.gain),
            retained_gain=told(arm.retained_gain),
            gamma={name: _cost(arm.gamma[name], name, ok) for name in RESOURCES},
            seconds=told(arm.seconds),
            peak_memory_bytes=_mean([r.peak_memory_bytes for r in ok], "not measured"),
            optimizer_state_bytes=_mean([r.optimizer_state_bytes for r in ok], "not told"),
            trained_share=told(arm.trained_share),
            selected_examples=_mean([r.selected_examples for r in ok], "not told"),
            multiple_of_full={name: told(arm.multiple_of_full[name]) for name in RESOURCES},
            quadrant=dict(arm.quadrant),
            k=_mean([k_of(r) for r in ok], "not told"),
            picker=_PICKERS.get(method.name) or str(method.settings.get("pick", "")),
            q=_mean([q_of(r) for r in ok], "not told"),
            limits=dict(record.limits),
            search=told(arm.search_seconds),
            trials=arm.trials,
            runs=[self._line(run, group.metric) for _, run in sorted(runs.items())],
        )

    def _line(self, record: RunRecord, metric: str) -> RunLine:
        run = self._dossiers[record.run_id]
        final, base = record.psi.final or {}, record.psi.base or {}
        curve = [
            (float(line["flops"]), float(line["validation"][metric]))
            for line in run.rows("history.jsonl")
            if metric in (line.get("validation") or {})
        ]
        training = None if run.spec is None else run.spec.training
        return RunLine(
            run_id=record.run_id,
            block=record.block,
            status=record.status,
            psi=final.get(metric),
            base=base.get(metric),
            gamma={name: getattr(record.gamma, name) for name in RESOURCES},
            seconds=dict(record.seconds),
            curve=curve,
            learning_rate=None if training is None else training.learning_rate,
            learning_rate_from=str(record.notes.get("learning_rate_from", "")),
            packages=record.environment.packages,
            commit=record.environment.commit,
            dirty=record.environment.dirty,
            trace_sha256=_trace_of(run),
            item_variance=None if not final else self._item_variance(record, metric),
        )

    def _item_variance(self, record: RunRecord, metric: str) -> float | None:
        scored = Scored(metric, self._dossiers[record.run_id].rows(PREDICTIONS), record.psi.items)
        return gain_covariance(metric, [(scored, None)]).variance

    def _tier(self, group: Group, runs: Iterable[RunRecord]) -> Tier:
        """Return the tier of an arm: its own runs, and those that it is measured against, could all be recomputed."""
        needed = [*runs, *(r for r in group.records if r.arm in ("full", "head"))]
        levels = {finding.level for record in needed for finding in self._flaws.get(record.run_id, ())}
        ours = all(record.loop == "cprbench" for record in needed)
        return "consistent" if ours and "unverified" not in levels else "self-reported"

    def _suite(self, group: Group, arm: str, record: RunRecord) -> SuiteSpec | None:
        """Return the ranking suite that asked for these runs: a stored run serves every suite that asks for it."""
        open_ = self._spec.division == "open"
        named = {run.suite for run in group.records}
        for suite in suites().values():
            task = self._dossiers[record.run_id].task
            if suite.ranking is None or task is None or not (open_ or suite.name in named):
                continue
            if not _of_suite(record, suite, task, any_recipe=open_):
                continue
            if open_ or arm in arms_in(str(suite.name)):
                return suite
        return None

    def _unranked(
        self,
        group: Group,
        arm: ArmResult,
        runs: Mapping[int, RunRecord],
        suite: SuiteSpec | None,
        tier: Tier,
    ) -> Iterator[str]:
        record = next(iter(runs.values()))
        if record.role != "run":
            yield "a smoke test: its recipe or limits are no suite's"
        if suite is None or suite.ranking is None:
            asked = (
                f"suite {record.suite} v{record.suite_version} does not rank"
                if record.suite
                else "no suite asked for it"
            )
            yield f"{asked}: {ranking()} does"
            return
        if tier == "self-reported":
            yield "something that ranks could not be recomputed here"
        for run in runs.values():
            for finding in self._flaws.get(run.run_id, ()):
                if finding.level == "unranked":
                    yield finding.message
        if self._spec.division == "closed" and any(_care(run) < _DECLARED for run in runs.values()):
            yield "its learning rate was given by hand, which the closed division does not allow"
        least = suite.ranking.blocks
        if len(arm.blocks) < least:
            yield f"{len(arm.blocks)} blocks ended well, {least} are asked for"
        if sorted(runs) != list(range(len(runs))):
            yield f"blocks {', '.join(map(str, sorted(runs)))}: every block from 0 is part of a submission"
        yield from self._without_controls(group, arm, record, suite)
        yield from self._gaps(group, arm, suite)

    def _without_controls(self, group: Group, arm: ArmResult, record: RunRecord, suite: SuiteSpec) -> Iterator[str]:
        assert suite.ranking is not None
        k = record.spec.method.settings.get("k")
        for control in suite.ranking.controls:
            beside = [
                other
                for other in group.records
                if other.spec.method.name == control
                and other.status == "ok"
                and other.spec.selection.name == "all"
                and _care(other) >= max(_care(record), _DECLARED)
                and ("k" not in other.spec.method.settings or other.spec.method.settings["k"] == k)
            ]
            by_k = control in ("last-layers", "random-submodules", "partial")
            if by_k and (k is None or record.spec.method.name == control):
                continue  # what trains no k-set has no control of equal k
            missing = sorted(set(arm.blocks) - {other.block for other in beside})
            if missing:
                what = f"{control} k={k}" if by_k else control
                blocks = ", ".join(map(str, missing))
                yield f"no {what} beside it in block {blocks}, on its hardware class, its rate chosen with as much care"

    def _gaps(self, group: Group, arm: ArmResult, suite: SuiteSpec) -> Iterator[str]:
        """Yield the cells of the suite that the submission lacks for this arm, on this hardware class."""
        assert suite.ranking is not None
        wanted = {m.weights_sha256: m.source for m in models().values() if m.source in suite.models}
        have = {
            (other.key["task"], other.key["weights_sha256"])
            for other in self._groups
            if other.key["hardware_class"] == group.key["hardware_class"]
            for own in other.arms
            if own.arm == arm.arm and (len(own.blocks) >= suite.ranking.blocks or other is group)
        }
        lacks = [f"{task} x {wanted[w]}" for task in suite.tasks for w in wanted if (task, w) not in have]
        if lacks:
            yield f"its submission lacks {', '.join(lacks)} for this arm"


_DECLARED = (1, 0)
#: A search of fewer rates, or one without the declared one, is a choice by hand.
_LEAST_RATES = 3


def _care(record: RunRecord) -> tuple[int, int]:
    """Return how carefully a run's learning rate was chosen, the most carefully last: a weak reference flatters
    (DESIGN rule 5). (0, 0): by hand; _DECLARED; (2, rates): searched on a grid that holds the declared one."""
    told, spec, search = record.notes.get("learning_rate_from"), record.spec, record.search
    if told == "declared":
        return _DECLARED
    if told != "searched" or search is None or not isinstance(spec, RunSpec):
        return 0, 0
    rates = set(search.learning_rates)
    declared = dict(getattr(arm_of(spec).method, "learning_rates", {})).get(spec.model.kind)
    return (2, len(rates)) if len(rates) >= _LEAST_RATES and declared in rates else (0, 0)


def _of_suite(record: RunRecord, suite: SuiteSpec, task: TaskSpec, *, any_recipe: bool) -> bool:
    """Return whether a run is one that a suite asks for: its task, its models, its limits, its recipe."""
    spec, ranking = record.spec, suite.ranking
    if not isinstance(spec, RunSpec) or ranking is None or record.role != "run" or spec.task.name not in suite.tasks:
        return False
    pinned = models().get(spec.model.weights_sha256)
    source = spec.model.source if pinned is None else pinned.source
    if source not in suite.models and not (pinned is None and source in ranking.optional_models):
        return False
    limits = suite.limits.model_dump(exclude_none=True)
    recipe = training_for(task, {**limits, **suite.training}, "suite")
    if any_recipe:
        fixed = ("max_examples", "eval_items")
        return all(getattr(recipe, name) == getattr(spec.training, name) for name in fixed)
    return recipe.model_dump(exclude={"learning_rate"}) == spec.training.model_dump(exclude={"learning_rate"})


#: resource -> the readings that it is made of, where it has another name
_READ = {"energy_kwh": ("gpu_energy_joules", "cpu_energy_joules"), "co2_kg": ("co2_kg",)}


def _cost(found: Figure, resource: str, runs: Sequence[RunRecord]) -> Number:
    """Return a cost, or why there is none in the words of the meter."""
    if found.value is not None or found.why != NOT_MEASURED:
        return told(found)
    own = ("gpu" if runs and runs[0].environment.devices else "cpu", resource)
    wanted = [name for name in _READ.get(resource, (resource,)) if "_energy_" not in name or name.startswith(own[0])]
    why = (r.why_missing for run in runs for r in run.readings if r.phase == "billed" and r.quantity in wanted)
    first = next(filter(None, why), None)
    return Number(value=None, why=NOT_MEASURED if first is None else f"{NOT_MEASURED}: {first}")


def _mean(values: Sequence[float | None], why: str) -> Number:
    return told(mean(values, why) if values else Figure.none("no run ended well"))


def _trace_of(run: Dossier) -> str:
    """Return a hash of what the meters read, "" where they read nothing; without times, which anybody can shift."""
    values = [row["values"] for row in run.rows("samples.jsonl") if "values" in row]
    if not values:
        return ""
    return sha256_of([{name: value for name, value in read.items() if name != "wall_seconds"} for read in values])
