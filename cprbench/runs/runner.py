"""RunSpec -> RunRecord: the parent's side. It plans, spawns a child per run, meters it and writes the record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cprbench.errors
from cprbench.errors import CprbenchError, SpecError, StoreError
from cprbench.meters import hardware
from cprbench.meters.flops import Flops, Pass, Trained, count, supported
from cprbench.meters.history import finish_history
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.runs import planner, store
from cprbench.runs.child import LOG, Outcome, run_child
from cprbench.runs.metering import Bench, MeterOptions, environment_of, open_bench
from cprbench.runs.planner import Inspected, Planned
from cprbench.sources import HubSource
from cprbench.spec import ExternalSpec, Psi, RunRecord, Scalar, Search, SuiteSpec, TaskSpec
from cprbench.tasks import load_task

#: observe(planned, event): a run began ("run"), is under way ("step", "progress") or is over ("done").
Observer = Callable[[Planned, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """What a launch may say besides the suite."""

    out: Path = Path("runs")
    data: Path | None = None
    offline: bool = False
    retry: bool = False
    save: Literal["none", "delta", "model"] = "none"
    search_rates: tuple[float, ...] = ()
    metering: MeterOptions = field(default_factory=MeterOptions)


@dataclass(frozen=True)
class Done:
    """What a launch leaves: the records of every planned run, those of its search, and what was reused."""

    records: list[RunRecord]
    trials: list[RunRecord]
    reused: int
    interrupted: bool = False

    @property
    def failed(self) -> list[RunRecord]:
        """The runs that did not end well."""
        return [record for record in self.records if record.status != "ok"]


def run(
    suite: SuiteSpec,
    *,
    options: Options | None = None,
    settings: Mapping[str, Scalar] | None = None,
    observe: Observer = lambda planned, event: None,
    announce: Callable[[Sequence[Planned]], None] = lambda runs: None,
) -> Done:
    """Run a suite and return its records; runs that are already stored are reused.

    `settings`: training settings over those of the suite. `announce` is told all runs before the first starts.
    Raises CprbenchError when the suite cannot be run at all; a run that fails becomes a record instead.
    """
    options = options or Options()
    settings = dict(settings or {})
    arms = planner.arms_of(suite.arm)
    tasks = [load_task(name) for name in suite.tasks]
    shelf = store.Store(options.out)
    shelf.open_for_writing()
    inspected = [inspect(task, model, options) for task in tasks for model in suite.models]
    planner.plan(suite, inspected, arms, settings=settings)  # every refusal comes before the first run
    launcher = _Launcher(shelf, options, observe)
    searched: dict[tuple[str, str, str], Search] = {}
    rates: dict[tuple[str, str, str], float] = {}
    trials: list[RunRecord] = []
    try:
        if options.search_rates:
            plans = planner.plan_search(suite, inspected, arms, settings=settings, rates=options.search_rates)
            announce([trial for group in plans.values() for trial in group])
            for key, group in plans.items():
                found = [launcher.run(trial) for trial in group]
                trials += found
                searched[key], rates[key] = _best_rate(key, group, found)
        runs = planner.plan(suite, inspected, arms, settings=settings, searched=searched, chosen_rates=rates)
        announce(runs)
        records = []
        for planned in runs:
            records.append(launcher.run(planned))
            if records[-1].status == "interrupted":
                return Done(records, trials, launcher.reused, interrupted=True)
    except _SearchInterruptedError as stop:
        return Done([], [*trials, *stop.args[0]], launcher.reused, interrupted=True)
    return Done(records, trials, launcher.reused)


class _SearchInterruptedError(Exception):
    pass


def _best_rate(key: tuple[str, str, str], group: Sequence[Planned], found: Sequence[RunRecord]) -> tuple[Search, float]:
    if any(record.status == "interrupted" for record in found):
        raise _SearchInterruptedError(found)
    rates = [planned.spec.training.learning_rate or 0.0 for planned in group]
    scored = [
        (record.psi.validation["nll"], rate)
        for rate, record in zip(rates, found, strict=True)
        if record.status == "ok" and record.psi.validation is not None
    ]
    if not scored:
        raise SpecError(f"{key[2]} on {key[0]}: every learning rate of the search failed ({rates}).")
    search = Search(trials=len(found), runs=[record.run_id for record in found], learning_rates=rates)
    return search, min(scored)[1]


def inspect(task: TaskSpec, model: str, options: Options) -> Inspected:
    """Return the hashes, counts and sizes of a task and a model, found out in a child of its own.

    Raises the error that the child met, as the same class of CprbenchError.
    """
    job = {
        "kind": "inspect",
        "task": task.model_dump(mode="json"),
        "model": model,
        "data": None if options.data is None else str(options.data),
        "offline": options.offline,
    }
    with tempfile.TemporaryDirectory(prefix="cprbench-") as scratch:
        outcome = run_child(
            job, Path(scratch), lambda event: None, offline=_is_offline(task, model, options), meter=False
        )
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.result is None:
        kind = getattr(cprbench.errors, outcome.error_kind or "", CprbenchError)
        raise kind(outcome.error)
    return Inspected.of(task, outcome.result)


def _is_offline(task: TaskSpec, model: str, options: Options) -> bool:
    """Return whether the child may be kept from the hub: asked for, or nothing named lives there."""
    on_hub = model.count("/") == 1 and not Path(model).exists()
    return options.offline or not (on_hub or any(isinstance(s, HubSource) for s in task.source))


class _Launcher:
    """Runs planned runs one after another on this machine."""

    def __init__(self, shelf: store.Store, options: Options, observe: Observer) -> None:
        self._shelf = shelf
        self._options = options
        self._observe = observe
        self.reused = 0

    def run(self, planned: Planned) -> RunRecord:
        """Return the record of a run: the stored one, or a new one. Raises StoreError when it cannot be written."""
        before = self._shelf.latest(planned.run_id)
        if before is not None:
            again = before.record.status == "interrupted" or (before.record.status != "ok" and self._options.retry)
            if not again:
                self.reused += 1
                self._observe(planned, {"event": "done", "record": before.record, "reused": True})
                return before.record
        earlier = before.record if before is not None else None
        identity = self._shelf.next_id(planned.run_id)
        folder = self._shelf.begin(identity)
        attempt = earlier.attempts + 1 if earlier is not None else 1
        self._observe(planned, {"event": "run"})
        job = {
            "kind": "run",
            "spec": planned.spec.model_dump(mode="json"),
            "task": planned.task.model_dump(mode="json"),
            "model": planned.spec.model.source,
            "role": planned.role,
            "data": None if self._options.data is None else str(self._options.data),
            "offline": self._options.offline,
            "save": self._options.save,
            "folder": str(folder),
            "attempt": attempt,
        }
        bench = open_bench(self._options.metering)
        try:
            outcome = run_child(
                job,
                folder,
                lambda event: self._observe(planned, event),
                offline=_is_offline(planned.task, planned.spec.model.source, self._options),
                meters=bench.meters,
                environment=bench.child_environment,
            )
            record = self._record(planned, identity, folder, attempt, outcome, earlier, bench)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot write ({error.strerror or error}). Free some space there or pass --out FOLDER. "
                "Finished runs are untouched."
            ) from error
        finally:
            bench.close()
        if outcome.status == "ok":
            (folder / LOG).unlink()
        self._shelf.commit(folder, record)
        self._observe(planned, {"event": "done", "record": record, "reused": False})
        return record

    def _record(
        self,
        planned: Planned,
        identity: str,
        folder: Path,
        attempt: int,
        outcome: Outcome,
        earlier: RunRecord | None,
        bench: Bench,
    ) -> RunRecord:
        trace = Trace.load(folder / store.SAMPLES)
        result = outcome.result or {}
        flops = _flops(planned, folder, attempt, result)
        # A child that died before it could tell ran where CUDA would have put it.
        on_gpu = result["device"] == "cuda" if result else bool(bench.gpu.devices)
        carbon = self._options.metering.carbon
        bill = account(
            trace,
            flops,
            cores=hardware.bound_cores(),
            accelerators=bench.accelerators(on_gpu),
            carbon=carbon,
            earlier=earlier.readings if earlier is not None else (),
            flags=bench.flags,
        )
        finish_history(folder / store.HISTORY, trace, flops_known=not isinstance(flops, str))
        empty = {"primary": planned.task.primary, "base": None, "final": None, "items": 0}
        return RunRecord(
            run_id=identity,
            previous=earlier.run_id if earlier is not None else None,
            status=outcome.status,
            error=outcome.error,
            role=planned.role,
            suite=planned.suite,
            suite_version=planned.suite_version,
            arm=planned.arm,
            block=planned.block,
            attempts=attempt,
            limits=planned.limits,
            spec=planned.spec,
            environment=environment_of(bench, on_gpu, carbon),
            psi=Psi.model_validate(result.get("psi", empty)),
            gamma=bill.gamma,
            seconds=bill.seconds,
            readings=bill.readings,
            search=planned.search,
            trained_parameters=result.get("trained_parameters"),
            total_parameters=result.get("total_parameters", planned.spec.model.parameters),
            new_head_parameters=result.get("new_head_parameters"),
            trained_submodules=result.get("trained_submodules", []),
            k_asked=result.get("k_asked"),
            k_reached=result.get("k_reached"),
            optimizer_state_bytes=result.get("optimizer_state_bytes"),
            peak_memory_bytes=bill.peak_memory_bytes,
            selected_examples=result.get("selected_examples"),
            selection_sha256=result.get("selection_sha256"),
            batches_sha256=result.get("batches_sha256"),
            notes={"learning_rate_from": planned.rate_from, **result.get("notes", {})},
        )


def _flops(
    planned: Planned, folder: Path, attempt: int, result: Mapping[str, Any]
) -> dict[tuple[str, int], Flops] | str:
    """Return the FLOPs by (phase, attempt), or the reason why they cannot be counted."""
    model = planned.spec.model
    if (reason := supported(model.config)) is not None:
        return reason
    path = folder / "work.jsonl"
    if not path.exists():
        return "the child ended before it wrote down what it had computed"
    passes = [Pass.parse(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    notes = result["notes"]
    trained = Trained(frozenset(result["trained_submodules"]), result["new_head_parameters"] > 0, notes.get("adapters"))
    return count(model.config, model.kind, notes["labels"], trained, passes)


def export(folder: Path | str, target: Path | str, *, offline: bool = False) -> Path:
    """Write the adapted model of a stored run as a plain folder that from_pretrained loads; return it.

    Raises StoreError when the run kept no delta (`--save delta`) or when the target holds files already.
    """
    from cprbench.adapt.export import export_run

    found = store.load_run(Path(folder))
    target = Path(target)
    spec = found.record.spec
    if isinstance(spec, ExternalSpec):
        raise StoreError(f"{folder} measured a loop that is not ours: its model is where that loop put it.")
    if target.exists() and any(target.iterdir()):
        raise StoreError(f"{target} holds files already. Name a new folder.")
    export_run(found.folder, spec, found.record.notes.get("labels"), target, offline=offline)
    return target
