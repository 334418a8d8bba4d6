"""What a run is: its id, seed, task, model, arm and suite follow from one another, so none can be edited alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cprbench.adapt.methods import METHODS
from cprbench.adapt.settings import PIN, settings_of
from cprbench.errors import CprbenchError
from cprbench.runs.arms import arm_of
from cprbench.runs.planner import run_id
from cprbench.spec import RunSpec, block_seed
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.known import models, suites
from cprbench.tasks import training_for

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIG = re.compile(r"\bconfig=\S+")
_VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+)+(\+[0-9A-Za-z.]+)?")
#: Packages that every run of ours has used.
_USED = ("cprbench", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def _own_id(run: Dossier) -> Iterator[Flaw]:
    record = run.record
    if record.run_id != run.run_id:
        yield Flaw("record.json", f"run_id is {record.run_id}, its folder is {run.run_id}")
    if (spec := run.spec) is None:
        return
    version = record.environment.packages.get("cprbench", "")
    found = run_id(spec, record.block, record.role, version)
    base, _, again = record.run_id.partition("-")
    if base != found:
        yield Flaw("record.json", f"run_id is {base}; this spec, block, role and version {version or '?'} make {found}")
    before = f"{base}-{int(again) - 1}" if again and again != "2" else base if again else None
    # A folder may be damaged and its id stay taken; then there is nothing that the run could name as repeated.
    if record.previous not in (before, None) or (record.previous is not None and record.attempts < 2):
        yield Flaw("record.json", f"previous is {record.previous}, a repeated run names {before}")


def _own_seed(run: Dossier) -> Iterator[Flaw]:
    if (spec := run.spec) is None:
        return
    found = block_seed(spec.task.name, spec.task.version, spec.model.weights_sha256, run.record.block)
    if spec.seed != found:
        yield Flaw("record.json", f"spec.seed is {spec.seed}, block {run.record.block} has {found}")


def _own_task(run: Dossier) -> Iterator[Flaw]:
    if (spec := run.spec) is None:
        return
    ref, task = spec.task, run.task
    if task is None:
        yield Flaw("record.json", f"no task {ref.name!r} of version {ref.version} is known here", "unverified")
        return
    if task.data_sha256 is not None and ref.data_sha256 != task.data_sha256:
        yield Flaw("record.json", f"spec.task.data_sha256 is {ref.data_sha256}, the task's is {task.data_sha256}")
    if run.record.psi.primary != task.primary:
        yield Flaw("record.json", f"psi.primary is {run.record.psi.primary!r}, the task's is {task.primary!r}")


def _own_model(run: Dossier) -> Iterator[Flaw]:
    if (spec := run.spec) is None:
        return
    pinned = models().get(spec.model.weights_sha256)
    if pinned is None:
        why = "is of no model that a suite names, so what the record says of it is the author's word"
        yield Flaw("record.json", f"weights_sha256 {spec.model.weights_sha256} {why}", "unranked")
        return
    for name in ("source", "label", "revision", "kind", "parameters", "config"):
        said, known = getattr(spec.model, name), getattr(pinned, name)
        if said != known and not (name == "source" and run.record.spec.model.revision is not None):
            yield Flaw("record.json", f"spec.model.{name} is {said!r:.200}, these weights have {known!r:.200}")


def _own_arm(run: Dossier) -> Iterator[Flaw]:
    if (spec := run.spec) is None:
        return
    record = run.record
    try:
        arm = arm_of(spec)
    except CprbenchError as error:
        yield Flaw("record.json", f"its method and selection cannot be made again: {error}")
        return
    for choice, made in ((spec.method, arm.method), (spec.selection, arm.selection)):
        stored = {key: value for key, value in choice.settings.items() if not key.endswith(PIN)}
        if stored != settings_of(made):
            yield Flaw("record.json", f"the settings of {choice.name} are not all that it has, with their values")
    said, found = record.arm, arm.label
    if "adapter_config.json" in spec.method.settings.values():  # all are called alike: an arm names its folder
        said, found = (_CONFIG.sub("config=", label) for label in (said, found))
    if said != found:
        yield Flaw("record.json", f"arm is {record.arm!r}, its settings make {arm.label!r}")
    pinned = spec.method.settings.get(f"blueprint{PIN}")
    if record.blueprint != pinned:
        yield Flaw("record.json", f"blueprint is {record.blueprint}, the method's settings name {pinned}")


def _own_suite(run: Dossier) -> Iterator[Flaw]:
    record, spec = run.record, run.spec
    if spec is None or run.task is None:
        return
    training = spec.training
    limits = {k: v for k in ("max_examples", "eval_items") if (v := getattr(training, k)) is not None}
    if record.limits != limits:
        yield Flaw("record.json", f"limits are {record.limits}, its recipe has {limits}")
    if record.suite is None:
        if record.suite_version is not None:
            yield Flaw("record.json", f"suite_version is {record.suite_version} without a suite")
        if record.role == "run" and limits and _beside(run, limits):
            yield Flaw(
                "record.json", f"role is run, and no suite fixes its limits {limits}: such a run is a smoke test"
            )
        return
    suite = suites().get(record.suite)
    if (suite is None or suite.version != record.suite_version) and run.division == "open":
        return
    if suite is None or suite.version != record.suite_version:
        known = "none" if suite is None else f"v{suite.version}"
        yield Flaw(
            "record.json", f"suite {record.suite} v{record.suite_version} is not known here ({known})", "unverified"
        )
        return
    if spec.task.name not in suite.tasks:
        yield Flaw("record.json", f"suite {suite.name} has no task {spec.task.name!r}")
    if record.role != "run":
        return  # a trial of the suite: its recipe or its limits are others
    asked = suite.limits.model_dump(exclude_none=True)
    recipe = training_for(run.task, {**asked, **suite.training}, "suite").model_copy(
        update={"learning_rate": training.learning_rate}
    )
    for name, wanted in recipe.model_dump().items():
        if (said := getattr(training, name)) != wanted:
            yield Flaw("record.json", f"spec.training.{name} is {said!r}, suite {suite.name} has {wanted!r}")


def _beside(run: Dossier, limits: dict[str, int]) -> bool:
    own = {} if run.task is None else training_for(run.task, {}, "task").model_dump()
    return any(own.get(name) != value for name, value in limits.items())


def _own_rate(run: Dossier) -> Iterator[Flaw]:
    record, spec = run.record, run.spec
    if spec is None:
        return
    told, rate = record.notes.get("learning_rate_from"), spec.training.learning_rate
    if told not in ("given", "searched", "declared"):
        yield Flaw("record.json", f"notes.learning_rate_from is {told!r}, none of given, searched, declared")
    elif told == "declared" and spec.method.name in METHODS:
        declared = dict(getattr(arm_of(spec).method, "learning_rates", {})).get(spec.model.kind)
        if rate != declared:
            yield Flaw("record.json", f"spec.training.learning_rate is {rate}, {spec.method.name} declares {declared}")
    elif told == "searched":
        yield from _searched(run, rate)
    if (told == "searched") != (record.search is not None) and record.role != "search":
        yield Flaw("record.json", "search stands in a record exactly where its rate was searched")


def _searched(run: Dossier, rate: float | None) -> Iterator[Flaw]:
    search = run.record.search
    if search is None or rate not in search.learning_rates:
        yield Flaw("record.json", f"spec.training.learning_rate {rate} is none of those that were tried")
        return
    if len(search.runs) != len(search.learning_rates) or len(set(search.runs)) < len(search.runs):
        yield Flaw("record.json", f"{len(search.runs)} trials of {len(search.learning_rates)} rates are no search")
        return
    edge = len(search.learning_rates) > 1 and rate in (min(search.learning_rates), max(search.learning_rates))
    if (search.trials, search.best_at_edge) != (len(search.runs), edge):
        yield Flaw("record.json", f"search says {search.trials} trials, best at edge {search.best_at_edge}")
    trials = [run.siblings.get(trial) for trial in search.runs]
    if any(trial is None for trial in trials):
        missing = next(name for name, trial in zip(search.runs, trials, strict=True) if trial is None)
        yield Flaw("record.json", f"trial {missing} of its search is not in the submission", "unverified")
        return
    found = []
    for trial, tried in zip(trials, search.learning_rates, strict=False):
        assert trial is not None
        own = trial.spec
        if own is None or own.training.learning_rate != tried or trial.record.role != "search":
            yield Flaw("record.json", f"trial {trial.run_id} did not try {tried}")
        elif run.spec is not None and _tried(own) != _tried(run.spec):
            yield Flaw("record.json", f"trial {trial.run_id} is of another method, task, model or recipe")
        if trial.record.status == "ok" and trial.record.psi.validation is not None:
            found.append((trial.record.psi.validation["nll"], tried))
    if found and min(found)[1] != rate:
        yield Flaw("record.json", f"the best of its trials is {min(found)[1]}, it took {rate}")


def _tried(spec: RunSpec) -> list[object]:
    """Return what a trial shares with the run that its rate is for: all but the rate, the data and where it ends."""
    recipe = spec.training.model_dump(exclude={"learning_rate"})
    return [spec.task, spec.model.weights_sha256, spec.method, recipe]


def _own_versions(run: Dossier) -> Iterator[Flaw]:
    environment = run.record.environment
    for name in _USED:
        if run.spec is not None and not _VERSION.fullmatch(environment.packages.get(name, "")):
            yield Flaw("record.json", f"environment.packages.{name} is {environment.packages.get(name)!r}, no version")
    if environment.commit is not None and not _COMMIT.fullmatch(environment.commit):
        yield Flaw("record.json", f"environment.commit is {environment.commit!r}, no commit")
    if (environment.commit is None) != (environment.dirty is None):
        yield Flaw("record.json", "environment.commit and environment.dirty are told together or not at all")
    if environment.dirty:
        yield Flaw("record.json", "it ran from a checkout with changes that no commit holds", "unranked")
    alike = (o.record.environment for o in run.siblings.values())
    first = next((e for e in alike if e.hardware_class == environment.hardware_class), environment)
    for name, version in environment.packages.items():
        if (other := first.packages.get(name)) != version:
            yield Flaw("record.json", f"{name} is {version}, other runs of the submission have {other}", "unranked")
    if environment.python != first.python:
        why = f"python is {environment.python}, other runs of the submission have {first.python}"
        yield Flaw("record.json", why, "unranked")


def _own_end(run: Dossier) -> Iterator[Flaw]:
    record = run.record
    if (record.status == "ok") != (record.error is None):
        yield Flaw(
            "record.json", f"status is {record.status} and error {record.error!r:.80}: one goes without the other"
        )
    if record.resumed and record.attempts < 2:
        yield Flaw("record.json", "it says that it was resumed, and had one attempt")


_RUN_AGAIN = "Run it again with `cprbench run`: a record is never edited"
RULES: tuple[Rule, ...] = (
    Rule("I1", "its id is the hash of what was asked for", _RUN_AGAIN, _own_id),
    Rule("I2", "its seed is its block's", _RUN_AGAIN, _own_seed),
    Rule("I3", "its task and data are the published ones", "Use the task file of this version of cprbench", _own_task),
    Rule("I4", "its model is the one that its weights' hash names", "Use the suite's own models", _own_model),
    Rule("I5", "its arm is the method, the settings and the selection that ran", _RUN_AGAIN, _own_arm),
    Rule(
        "I6",
        "its suite, limits and recipe go together",
        "Run the suite unchanged, or submit without its name",
        _own_suite,
    ),
    Rule("I7", "its learning rate is declared, given or the best that was tried", "Pack the trials as well", _own_rate),
    Rule(
        "I8",
        "its versions are told and the same in all runs",
        "Run all of it from one clean installation",
        _own_versions,
    ),
    Rule("I9", "it says how it ended", _RUN_AGAIN, _own_end),
)
