"""A stored run once more, from its own spec: what was asked for then is asked for again, here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cprbench.adapt.methods import method_class
from cprbench.adapt.selection import selection_class
from cprbench.adapt.settings import PIN
from cprbench.blueprint.files import sha256_of_file
from cprbench.errors import DataError, ModelError, SpecError, StoreError
from cprbench.runs.arms import arm_of
from cprbench.runs.planner import Inspected, Planned, check_arm, run_id
from cprbench.runs.runner import Launcher, Observer, Options, inspect, must_meter
from cprbench.runs.store import PREDICTIONS, Run, Store, load_run
from cprbench.spec import RunRecord, RunSpec, TaskSpec, block_seed
from cprbench.tasks import known_tasks, load_task, pinned_models


def reproduce(
    run: Run,
    options: Options,
    *,
    files: Sequence[Path] = (),
    observe: Observer = lambda planned, event: None,
    announce: Callable[[Sequence[Planned]], None] = lambda runs: None,
) -> Run:
    """Run a stored run again under its own id and return what is stored then; an earlier reproduction is reused.

    `files`: where files that its settings name may be; they are known by their content, and those beside the run are
    looked at too. Raises CprbenchError, before anything runs, for what cannot be run again here.
    """
    task = task_of(run.record)
    spec = run.record.spec
    assert isinstance(spec, RunSpec)
    base = run.record.run_id.partition("-")[0]
    shelf = Store(options.out)
    before = shelf.latest(base)
    if before is not None and before.record == run.record:
        raise StoreError(
            f"{before.folder} is this very record, and nothing is compared with itself. Pass another --out."
        )
    _must_hold_predictions(run)
    own = pinned_models().get(spec.model.weights_sha256)
    here = {room: _found(run, room, files) for room in ("method", "selection")}
    shelf.open_for_writing()
    found = inspect(task, spec.model.pinned if own is None else own.pinned, options)
    planned = plan_again(run.record, found, here)
    must_meter([planned], options)
    announce([planned])
    record = Launcher(shelf, options, observe).run(planned)
    return load_run(options.out / record.run_id)


def task_of(record: RunRecord) -> TaskSpec:
    """Return the task of a record that can be run again. Raises SpecError or StoreError with why it cannot be."""
    spec = record.spec
    if not isinstance(spec, RunSpec):
        raise StoreError(
            f"run {record.run_id} is an external loop: nobody here knows its recipe. Start its command again under "
            "`cprbench measure`."
        )
    if record.status != "ok":
        raise StoreError(f"run {record.run_id} {_ENDED[record.status]}, so there is nothing to agree with.")
    if record.role == "search":
        raise StoreError(
            f"run {record.run_id} is a trial of a search, which is scored on no test item. Reproduce the run that took "
            "its learning rate."
        )
    version = record.environment.packages.get("cprbench", "")
    seed = block_seed(spec.task.name, spec.task.version, spec.model.weights_sha256, record.block)
    if (spec.seed, run_id(spec, record.block, record.role, version)) != (seed, record.run_id.partition("-")[0]):
        raise SpecError(f"run {record.run_id}: its id and seed do not follow from its spec. `cprbench validate` it.")
    if run_id(spec, record.block, record.role) != record.run_id.partition("-")[0]:
        raise SpecError(
            f"run {record.run_id} is of cprbench {version:.20}, and runs of another minor version are other runs. "
            f"Install that one."
        )
    if (processes := record.environment.facts.get("processes", 1)) != 1:
        raise SpecError(f"run {record.run_id} took {processes!s:.20} processes, and one is what is run again.")
    task = load_task(spec.task.name) if spec.task.name in known_tasks() else None
    if task is None or task.version != spec.task.version:
        known = "no such task" if task is None else f"v{task.version}"
        raise SpecError(
            f"task {spec.task.name!r:.80} v{spec.task.version} is not known here ({known}). Add its file to the folder "
            "that CPRBENCH_TASKS names."
        )
    return task


_ENDED = {
    "failed": "failed",
    "out_of_memory": "ran out of memory",
    "timeout": "ran out of time",
    "interrupted": "was interrupted",
}


def plan_again(record: RunRecord, found: Inspected, files: Mapping[str, Mapping[str, str]]) -> Planned:
    """Return a stored run as a plan for this machine; bills to meet and rates that were searched are as recorded.

    Raises DataError or ModelError for other examples or weights, and what planning raises for an arm that cannot run.
    """
    spec = record.spec
    assert isinstance(spec, RunSpec)
    if (own := found.task_ref.data_sha256) != spec.task.data_sha256:
        raise DataError(f"task {spec.task.name}: the run's examples are {spec.task.data_sha256}, here they are {own}.")
    if (own := found.model.weights_sha256) != (wanted := spec.model.weights_sha256):
        raise ModelError(f"model {found.model.pinned}: the run's weights are {wanted}, here they are {own}.")
    spec = spec.model_copy(update={"model": found.model})
    check_arm(found, arm_of(spec, files), spec.training)
    return Planned(
        run_id=run_id(spec, record.block, record.role),
        spec=spec,
        task=found.task,
        arm=record.arm,
        block=record.block,
        role=record.role,
        suite=record.suite,
        suite_version=record.suite_version,
        limits=record.limits,
        search=record.search,
        rate_from=record.notes.get("learning_rate_from", "given"),
        has_new_head=found.has_new_head,
        labels=found.labels,
        files=files,
    )


def _must_hold_predictions(run: Run) -> None:
    try:
        rows = [row for name in (PREDICTIONS, f"base_{PREDICTIONS}") for row in run.lines(name)]
    except ValueError:
        rows = []
    if not rows or not all(isinstance(row, dict) and {"id", "prediction"} <= row.keys() for row in rows):
        raise StoreError(f"{run.folder}: no predictions that can be read, and they say how far scores may differ.")


def _found(run: Run, room: str, files: Sequence[Path]) -> dict[str, str]:
    """Return setting -> path of the files that a method or selection names. Raises SpecError for a missing one."""
    choice = getattr(run.record.spec, room)
    made = (method_class if room == "method" else selection_class)(choice.name)
    named = [key for key in getattr(made, "files", ()) if choice.settings.get(key)]
    here = {sha256_of_file(path): str(path.resolve()) for path in files} if named else {}
    for path in sorted(run.folder.parent.glob("*.json")) if named else ():
        with suppress(SpecError):  # what nobody named may be anything
            here.setdefault(sha256_of_file(path), str(path.resolve()))
    for key in named:
        if (digest := choice.settings.get(f"{key}{PIN}")) not in here:
            raise SpecError(
                f"{choice.name:.40}.{key} = {choice.settings[key]!r:.80}: no file here has its sha256, {digest!s:.64}. "
                "Pass it with --file FILE."
            )
    return {key: here[str(choice.settings[f"{key}{PIN}"])] for key in named}
