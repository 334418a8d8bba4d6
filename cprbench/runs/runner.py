"""RunSpec -> RunRecord: the parent's side. It plans, spawns a child per run, meters it and writes the record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cprbench.adapt import random_models
from cprbench.adapt.checkpoints import DELTA
from cprbench.errors import MeterError, SpecError, StoreError
from cprbench.meters import hardware
from cprbench.meters.flops import Flops, Pass, Trained, count, supported
from cprbench.meters.history import finish_history
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.runs import planner, store
from cprbench.runs.arms import arms_of
from cprbench.runs.bills import last_bill
from cprbench.runs.child import LOG, Outcome, run_child
from cprbench.runs.metering import Bench, MeterOptions, environment_of, open_bench
from cprbench.runs.planner import Inspected, Planned
from cprbench.sessions import score_cache
from cprbench.sessions.channel import TRAINS
from cprbench.sources import HubSource
from cprbench.spec import ExternalSpec, Psi, Reading, RunRecord, Scalar, Search, SuiteSpec, TaskSpec, billed_phases
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
    #: method ("" for all others) -> learning rates to try
    search_rates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    #: processes that train one model together, each on a device of its own
    processes: int = 1
    #: the methods were not named: leave `head` out where it does not apply
    default_methods: bool = False
    metering: MeterOptions = field(default_factory=MeterOptions)


@dataclass(frozen=True)
class Done:
    """What a launch leaves: the records of every planned run, those of its search, and what was reused."""

    records: list[RunRecord]
    trials: list[RunRecord]
    reused: int
    interrupted: bool = False
    #: Runs that could not be planned to the end, with the reason: a bill that they had to meet was not measured.
    skipped: dict[str, str] = field(default_factory=dict)

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
    if options.processes < 1:
        raise SpecError(f"--processes {options.processes}: at least one.")
    if options.processes > 1 and any(arm.snapshots for arm in suite.arm):
        raise SpecError("an arm with snapshots runs in one process. Leave --processes or snapshots out.")
    arms = arms_of(suite.arm)
    tasks = [load_task(name) for name in suite.tasks]
    shelf = store.Store(options.out)
    shelf.open_for_writing()
    inspected = [inspect(task, model, options) for task in tasks for model in suite.models]
    if options.default_methods and all(found.model.kind == "causal" for found in inspected):
        arms = [arm for arm in arms if arm.method.name != "head"]
    # Every refusal comes before the first run.
    must_meter(planner.plan(suite, inspected, arms, settings=settings), options)
    launcher = Launcher(shelf, options, observe)
    searched: dict[tuple[str, str, str], Search] = {}
    rates: dict[tuple[str, str, str], float] = {}
    trials: list[RunRecord] = []
    if options.search_rates:
        plans = planner.plan_search(suite, inspected, arms, settings=settings, rates=options.search_rates)
        announce([trial for group in plans.values() for trial in group])
        for key, group in plans.items():
            for trial in group:
                trials.append(launcher.run(trial))
                if trials[-1].status == "interrupted":
                    return Done([], trials, launcher.reused, interrupted=True)
            searched[key], rates[key] = _best_rate(key, group, trials[-len(group) :])
    runs = planner.plan(suite, inspected, arms, settings=settings, searched=searched, chosen_rates=rates)
    announce(runs)
    records: list[RunRecord] = []
    skipped: dict[str, str] = {}
    bills: dict[Any, RunRecord] = {}
    for planned in runs:
        place = (planned.spec.task.name, planned.spec.model.source, planned.block)
        if planned.follows is not None:
            bill = bills[*place, planned.follows]
            amount = last_bill(bill, planned.meets)
            if amount is None or bill.status != "ok":
                why = bill.status if bill.status != "ok" else f"its {planned.meets} were not measured"
                skipped[f"{planned.arm}, block {planned.block}"] = f"{planned.follows} has no bill to meet: {why}"
                continue
            planned = planned.billed_like(amount)
        records.append(launcher.run(planned))
        bills[*place, planned.arm] = records[-1]
        if records[-1].status == "interrupted":
            return Done(records, trials, launcher.reused, interrupted=True, skipped=skipped)
    return Done(records, trials, launcher.reused, skipped=skipped)


def must_meter(runs: Sequence[Planned], options: Options) -> None:
    """Raise MeterError where a run is to end by a resource that nothing here measures."""
    ends = [(run.arm, end.resource) for run in runs for end in (run.spec.budget, run.spec.stop) if end is not None]
    for arm, resource in dict.fromkeys(end for end in ends if end[1] != "flops"):
        bench = open_bench(options.metering, devices=options.processes)
        why = bench.unmetered(resource)
        bench.close()
        if why is not None:
            raise MeterError(f"{arm}: {resource} is not measured here: {why}. End it by flops, or by device_hours.")


def _best_rate(key: tuple[str, str, str], group: Sequence[Planned], found: Sequence[RunRecord]) -> tuple[Search, float]:
    rates = [planned.spec.training.learning_rate or 0.0 for planned in group]
    scored = [
        (record.psi.validation["nll"], rate)
        for rate, record in zip(rates, found, strict=True)
        if record.status == "ok" and record.psi.validation is not None
    ]
    if not scored:
        raise SpecError(f"{key[2]} on {key[0]}: every learning rate of the search failed ({rates}).")
    best = min(scored)[1]
    edge = len(rates) > 1 and best in (min(rates), max(rates))
    ids = [record.run_id for record in found]
    return Search(trials=len(found), runs=ids, learning_rates=rates, best_at_edge=edge), best


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
    return Inspected.of(task, outcome.must())


def _is_offline(task: TaskSpec, model: str, options: Options) -> bool:
    """Return whether the child may be kept from the hub: asked for, or nothing named lives there."""
    on_hub = model.count("/") == 1 and not Path(model).exists() and not model.startswith(random_models.PREFIX)
    return options.offline or not (on_hub or any(isinstance(s, HubSource) for s in task.source))


class Launcher:
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
            if not again and self._options.save != "none" and not (before.folder / DELTA).exists():
                raise StoreError(
                    f"{before.folder} is stored without its trained tensors, and a record never changes. "
                    f"Pass another --out to run {planned.arm} again with --save {self._options.save}."
                )
            if not again:
                self.reused += 1
                self._observe(planned, {"event": "done", "record": before.record, "reused": True})
                return before.record
        earlier = before.record if before is not None else None
        identity = self._shelf.next_id(planned.run_id)
        bench = open_bench(
            self._options.metering, devices=self._options.processes
        )  # before the claim: a GPU in use leaves no attempt behind
        folder = self._shelf.begin(identity)
        attempt = earlier.attempts + 1 if earlier is not None else 1
        billed = list(earlier.readings) if earlier is not None else []
        paid: set[str] = set(earlier.notes.get("scores", ())) if earlier is not None else set()
        for left in self._shelf.abandoned(folder):  # its parent died: what it cost is part of this run
            if spent := self._readings_of(planned, left, attempt, bench, paid):
                billed += spent
                attempt += 1
            paid |= score_cache.keys(left)
        self._observe(planned, {"event": "run"})
        job = {
            "kind": "snapshots" if planned.spec.snapshots else "run",
            "spec": planned.spec.model_dump(mode="json"),
            "task": planned.task.model_dump(mode="json"),
            "model": planned.spec.model.pinned,
            "files": {room: dict(paths) for room, paths in planned.files.items()},
            "scores": str((self._shelf.root / score_cache.FOLDER).resolve()),
            "hardware_class": bench.hardware_class(bool(bench.gpu.devices)),
            "accelerators": bench.accelerators(bool(bench.gpu.devices)),
            "role": planned.role,
            "data": None if self._options.data is None else str(self._options.data),
            "offline": self._options.offline,
            "save": self._options.save,
            "folder": str(folder),
            "attempt": attempt,
        }
        try:
            outcome = run_child(
                job,
                folder,
                lambda event: self._observe(planned, event),
                offline=_is_offline(planned.task, planned.spec.model.source, self._options),
                meters=bench.meters,
                environment=bench.child_environment,
                processes=self._options.processes,
            )
            record = self._record(planned, identity, folder, attempt, outcome, earlier, billed, bench, paid)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot write ({error.strerror or error}). Free some space there or pass --out FOLDER. "
                "Finished runs are untouched."
            ) from error
        finally:
            bench.close()
        if outcome.status == "ok":
            (folder / LOG).unlink()
        for name in (TRAINS, score_cache.USED):
            (folder / name).unlink(missing_ok=True)
        self._shelf.commit(folder, record)
        self._observe(planned, {"event": "done", "record": record, "reused": False})
        return record

    def _readings_of(self, planned: Planned, folder: Path, attempt: int, bench: Bench, paid: set[str]) -> list[Reading]:
        """Return the readings of an attempt whose parent died before it could write a record."""
        samples = folder / store.SAMPLES
        if not samples.exists():
            return []
        trace, flops = Trace.load(samples).as_attempt(attempt), _flops(planned, folder)
        if not isinstance(flops, str):
            flops = {(phase, attempt): value for (phase, _), value in flops.items()}
        allotted: dict[str, Any] = {
            "cores": hardware.bound_cores(),
            "accelerators": bench.accelerators(bool(bench.gpu.devices)),
            "carbon": self._options.metering.carbon,
            "phases": billed_phases(planned.spec.stop),
        }
        known = not isinstance(flops, str)
        root = self._shelf.root / score_cache.FOLDER
        cached = score_cache.settle(root, folder, trace, attempt, flops_known=known, paid=paid, **allotted)
        return account(trace, flops, cached=cached, **allotted).readings

    def _record(
        self,
        planned: Planned,
        identity: str,
        folder: Path,
        attempt: int,
        outcome: Outcome,
        earlier: RunRecord | None,
        billed: Sequence[Reading],
        bench: Bench,
        paid: set[str],
    ) -> RunRecord:
        trace = Trace.load(folder / store.SAMPLES)
        result = outcome.result or {}
        flops = _flops(planned, folder)
        # A child that died before it could tell ran where CUDA would have put it.
        on_gpu = result["device"] == "cuda" if result else bool(bench.gpu.devices)
        carbon = self._options.metering.carbon
        allotted: dict[str, Any] = {
            "cores": hardware.bound_cores(),
            "accelerators": bench.accelerators(on_gpu),
            "carbon": carbon,
            "flags": bench.flags,
            "phases": billed_phases(planned.spec.stop),
        }
        known = not isinstance(flops, str)
        root = self._shelf.root / score_cache.FOLDER
        cached = score_cache.settle(root, folder, trace, attempt, flops_known=known, paid=paid, **allotted)
        bill = account(trace, flops, earlier=billed, cached=cached, **allotted)
        scores = paid | score_cache.keys(folder)
        finish_history(folder / store.HISTORY, trace, allotted["phases"])
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
            environment=environment_of(bench, on_gpu, carbon, self._options.processes),
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
            blueprint=planned.spec.method.settings.get("blueprint_sha256"),
            notes={
                "learning_rate_from": planned.rate_from,
                **({"scores": sorted(scores)} if scores else {}),
                **result.get("notes", {}),
            },
        )


def _flops(planned: Planned, folder: Path) -> dict[tuple[str, int], Flops] | str:
    """Return the FLOPs by (phase, attempt), or the reason why they cannot be counted."""
    model = planned.spec.model
    if (reason := supported(model.config)) is not None:
        return reason
    path, told = folder / "work.jsonl", folder / TRAINS
    if not path.exists():
        return "the child ended before it computed anything"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was torn by its death
    passes = [Pass.parse(json.loads(line)) for line in lines]
    if told.exists():
        known = json.loads(told.read_text(encoding="utf-8"))
        if known.get("uncounted"):
            return str(known["uncounted"])
        cells = frozenset(known["trained_submodules"])
        trained = Trained(cells, known["new_head"], known["adapters"], known.get("tensors"))
        return count(model.config, model.kind, known["labels"], trained, passes)
    if any(done.trains == "method" for done in passes):
        return "the child ended before it told what its passes train"
    return count(model.config, model.kind, planned.labels, Trained(frozenset(), planned.has_new_head), passes)


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
    notes = found.record.notes
    config = notes.get("adapter_config")
    export_run(found.folder, spec, notes.get("labels"), target, adapter_config=config, offline=offline)
    return target
