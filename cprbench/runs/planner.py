"""Suite -> runs. Everything is checked here, before anything runs. Imports no torch."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cprbench
from cprbench.adapt.methods import Method, Probe, Target, build_method, named
from cprbench.adapt.selection import Selection, build_selection, selection_label
from cprbench.adapt.selection.ranking import parse_band
from cprbench.adapt.settings import label, pinned, settings_of, without_paths
from cprbench.errors import MethodError, SpecError, TrainingError, did_you_mean
from cprbench.meters.flops import supported
from cprbench.schema import sha256_of
from cprbench.spec import (
    RECIPE_BEFORE,
    ArmSpec,
    Choice,
    ModelRef,
    RunSpec,
    Scalar,
    Search,
    SuiteSpec,
    TaskRef,
    TaskSpec,
    TrainingSpec,
    block_seed,
)
from cprbench.tasks import training_for

Role = Literal["run", "search", "smoke"]


@dataclass(frozen=True)
class Inspected:
    """What a task and a model turned out to be (sessions.inspection)."""

    task: TaskSpec
    task_ref: TaskRef
    counts: Mapping[str, int]
    model: ModelRef
    sizes: Mapping[str, int]  # submodule -> parameters
    has_new_head: bool
    labels: int | None  # outputs of a new head
    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)  # submodule -> names of its parameters
    device: str = "cpu"  # cuda | cpu: what runs here compute on
    bitsandbytes: bool = False  # whether it is installed

    @classmethod
    def of(cls, task: TaskSpec, found: Mapping[str, Any]) -> Inspected:
        """Return the answer of an inspecting child as an Inspected."""
        ref = TaskRef(name=task.name, version=task.version, data_sha256=found["data_sha256"])
        model = ModelRef.model_validate(found["model"])
        own = {key: found[key] for key in ("counts", "sizes", "labels", "tensors", "device", "bitsandbytes")}
        return cls(task=task, task_ref=ref, model=model, has_new_head=bool(found["new_head"]), **own)

    @property
    def target(self) -> Target:
        """What a method may know before it is planned."""
        model, data = self.model, self.task_ref.data_sha256
        return Target(
            model.kind,
            self.sizes,
            self.tensors,
            model.weights_sha256,
            model.revision,
            model.label,
            data_sha256=data,
            device=self.device,
            bitsandbytes=self.bitsandbytes,
        )


@dataclass(frozen=True)
class Arm:
    """A method with its settings and a selection, ready to be planned."""

    method: Method
    selection: Selection
    follows: str | None = None  # the arm whose billed FLOPs it has to meet, so that it runs after it

    @property
    def label(self) -> str:
        """The arm's name: "partial k=0.15 selection=influence q=0.3"."""
        return " ".join(filter(None, (label(self.method), selection_label(self.selection))))


@dataclass(frozen=True)
class Planned:
    """One run to do."""

    run_id: str
    spec: RunSpec
    task: TaskSpec
    arm: str
    block: int
    role: Role
    suite: str | None
    suite_version: int | None
    limits: dict[str, int]
    search: Search | None = None
    rate_from: Literal["given", "searched", "declared"] = "declared"
    has_new_head: bool = False
    labels: int | None = None
    #: method | selection -> setting -> path on this machine
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    follows: str | None = None

    def billed_like(self, flops: float) -> Planned:
        """Return this run with the bill that it has to meet: that of the arm that it follows."""
        selection = self.spec.selection
        chosen = selection.model_copy(update={"settings": {**selection.settings, "flops": float(flops)}})
        spec = self.spec.model_copy(update={"selection": chosen})
        return replace(self, spec=spec, run_id=run_id(spec, self.block, self.role))


def arms_of(specs: Sequence[ArmSpec]) -> list[Arm]:
    """Return the arms of a suite; list-valued settings make one arm per combination.

    Raises SpecError for unknown methods, settings and selections, and for arms that are the same twice.
    """
    arms: dict[str, Arm] = {}
    baselines: dict[str, Arm] = {}
    for spec in specs:
        name, file = named(spec.method)
        if both := sorted(set(file) & set(spec.settings)):
            raise SpecError(f"method {spec.method!r} names its file itself. Leave out {name}.{both[0]}.")
        for settings in _combined({**spec.settings, **file}):
            for chosen in _combined(spec.selection_settings):
                arm = Arm(build_method(name, settings), build_selection(spec.selection, chosen))
                if arm.label in arms:
                    raise SpecError(f"arm {arm.label!r} is listed twice. Leave one out, or give its file another name.")
                arms[arm.label] = arm
                if spec.baselines:
                    found = _baselines(arm, spec.baseline_method or spec.method)
                    baselines |= {baseline.label: baseline for baseline in found}
    return list((arms | {name: arm for name, arm in baselines.items() if name not in arms}).values())


def _combined(settings: Mapping[str, Scalar | list[Scalar]]) -> list[dict[str, Scalar]]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _baselines(arm: Arm, method: str) -> list[Arm]:
    """Return what an arm is compared with: as much by lot, and as much by lot as its whole bill pays for."""
    name, file = named(method)
    known = settings_of(build_method(name, {}))
    same = build_method(name, {k: v for k, v in settings_of(arm.method).items() if k in known} | file)
    q = {k: v for k, v in settings_of(arm.selection).items() if k in ("q", "class_guard")}
    if getattr(arm.selection, "band", ""):
        low, high = parse_band(arm.selection.band)  # type: ignore[attr-defined]
        q["q"] = round(high - low, 12)
    if arm.selection.name != "all" and same != arm.method:
        raise SpecError(f"arm {arm.label!r} chooses its data, so its baselines train like it: no baseline_method.")
    if arm.selection.name == "all" and same == arm.method:
        raise SpecError(
            f"arm {arm.label!r} uses all data: its baseline by lot is itself. Name another baseline_method."
        )
    warm = {"warm": True} if arm.selection.warms_head else {}  # so that nothing differs but the choice
    by_lot = build_selection("random", {**q, **warm}) if q else arm.selection
    follows = selection_label(arm.selection).removeprefix("selection=") if same == arm.method else arm.label
    billed = build_selection("random", {"flops_of": follows, **warm})
    return [Arm(same, by_lot), Arm(same, billed, follows=arm.label)]


def plan(
    suite: SuiteSpec,
    inspected: Sequence[Inspected],
    arms: Sequence[Arm],
    *,
    settings: Mapping[str, Any],
    searched: Mapping[tuple[str, str, str], Search] | None = None,
    chosen_rates: Mapping[tuple[str, str, str], float] | None = None,
) -> list[Planned]:
    """Return the runs of a suite, block by block; within a block arms are in an order of their own hash.

    `settings`: training settings of the command line, over those of the suite. `chosen_rates`: learning rates
    found by a search, by (task, model, arm). Raises SpecError or MethodError before anything runs.
    """
    runs: list[Planned] = []
    for found in inspected:
        for block in range(suite.blocks):
            group = [_planned(suite, found, arm, block, settings, searched or {}, chosen_rates or {}) for arm in arms]
            # Shuffled, so that a machine that drifts does not favour the arm that always comes first.
            runs += sorted(group, key=lambda run: (run.follows is not None, sha256_of([run.spec.seed, run.arm])))
    return runs


def plan_search(
    suite: SuiteSpec,
    inspected: Sequence[Inspected],
    arms: Sequence[Arm],
    *,
    settings: Mapping[str, Any],
    rates: Mapping[str, Sequence[float]],
) -> dict[tuple[str, str, str], list[Planned]]:
    """Return the trials of a learning-rate search by (task, model, arm): block 0's seed, validation NLL only."""
    trials: dict[tuple[str, str, str], list[Planned]] = {}
    if "learning_rate" in settings:
        raise SpecError("a search and a given rate exclude each other. Leave out --search or training.learning_rate.")
    for found in inspected:
        if not found.counts["validation"]:
            raise SpecError(f"task {found.task.name!r} has no validation split, so no rate can be searched on it.")
        for arm in arms:
            if arm.follows is not None or (arm.method.name not in rates and "" not in rates):
                continue  # not asked for: its declared rate; or there is no bill to meet yet
            key = (found.task.name, found.model.source, arm.label)
            trials[key] = [
                _planned(suite, found, arm, 0, {**settings, "learning_rate": rate}, {}, {}, role="search")
                for rate in rates.get(arm.method.name, rates.get("", ()))
            ]
    return trials


def _planned(
    suite: SuiteSpec,
    found: Inspected,
    arm: Arm,
    block: int,
    settings: Mapping[str, Any],
    searched: Mapping[tuple[str, str, str], Search],
    rates: Mapping[tuple[str, str, str], float],
    role: Role | None = None,
) -> Planned:
    key = (found.task.name, found.model.source, arm.label)
    own = {key: value for key, value in settings.items() if key in ("max_examples", "eval_items")}
    limits = suite.limits.model_dump(exclude_none=True)
    recipe = training_for(found.task, {**limits, **suite.training, **settings}, "--set")
    _check_examples(found, recipe)
    _check_recipe(found, recipe)
    try:
        target = replace(found.target, probe=Probe(recipe.select_batch_size, recipe.select_warmup_steps))
        arm.method.check(target)
        arm.selection.check(arm.method, target)
        _check_steps(found, arm, recipe)
    except (MethodError, TrainingError) as error:
        raise type(error)(f"{arm.label}: {error}") from None
    rate_from: Literal["given", "searched", "declared"] = "given"
    if arm.follows is not None and arm.follows.partition(" ")[0] == arm.method.name:  # only its data differ
        key = (found.task.name, found.model.source, arm.follows)
    if recipe.learning_rate is None:
        rate_from = "searched" if key in rates else "declared"
        rate = rates.get(key) or arm.method.learning_rates[found.model.kind]
        recipe = recipe.model_copy(update={"learning_rate": rate})
    seed = block_seed(found.task.name, found.task.version, found.model.weights_sha256, block)
    (own_settings, method_files), (chosen, selection_files) = pinned(arm.method), pinned(arm.selection)
    method = Choice(name=arm.method.name, settings=own_settings)
    selection = Choice(name=arm.selection.name, settings=chosen)
    spec = RunSpec(
        task=found.task_ref, model=found.model, method=method, selection=selection, seed=seed, training=recipe
    )
    # Limits rank only where a named suite version fixes them (DESIGN rule 6).
    role = role or ("smoke" if own or (limits and suite.name is None) else "run")
    in_force = {k: v for k, v in (("max_examples", recipe.max_examples), ("eval_items", recipe.eval_items)) if v}
    named = suite.name is not None
    return Planned(
        run_id=run_id(spec, block, role),
        spec=spec,
        task=found.task,
        arm=arm.label,
        block=block,
        role=role,
        suite=suite.name if named else None,
        suite_version=suite.version if named else None,
        limits=in_force,
        search=searched.get(key),
        rate_from=rate_from,
        has_new_head=found.has_new_head,
        labels=found.labels,
        files={"method": method_files, "selection": selection_files},
        follows=arm.follows,
    )


def _check_steps(found: Inspected, arm: Arm, recipe: TrainingSpec) -> None:
    """Raise SpecError or TrainingError for a selection that keeps nothing, or whose choosing uses up all steps."""
    kept = arm.selection.kept(_available(found, recipe))
    before = recipe.select_warmup_steps if found.has_new_head and arm.selection.warms_head else 0
    before += getattr(arm.selection, "trains", 0)
    steps = None if kept is None else recipe.epochs * math.ceil(kept / recipe.batch_size)
    if before and steps is not None and before >= steps:
        raise TrainingError(
            f"choosing takes {before} of the run's {steps} steps ({kept} examples), so none is left to train. Lower "
            "select.warmup_steps, or train on more examples or epochs."
        )
    if arm.follows is None and getattr(arm.selection, "flops_of", None):
        raise SpecError("selection.flops_of is for suites (baselines = true). Give selection.flops as a number.")
    opaque = getattr(arm.method, "opaque", None)
    if opaque is not None and (arm.selection.warms_head or getattr(arm.selection, "flops", None)):
        name = arm.selection.name
        raise MethodError(f"selection {name!r} asks for what cannot be told: {opaque}. Use a config of plain LoRA.")
    meets = "its baselines" if arm.follows is not None else "selection.flops"
    billed = arm.follows is not None or bool(getattr(arm.selection, "flops", 0))
    if billed and (why := opaque or supported(found.model.config)) is not None:
        raise TrainingError(f"there are no FLOPs to compare by: {why}. Leave out {meets}.")


def _check_recipe(found: Inspected, recipe: TrainingSpec) -> None:
    """Raise TrainingError for a recipe that this machine cannot follow, or that contradicts itself."""
    if recipe.optimizer == "adamw8bit" and not (found.device == "cuda" and found.bitsandbytes):
        lacks = "no CUDA device here" if found.device != "cuda" else "bitsandbytes is not installed"
        raise TrainingError(
            f"training.optimizer = adamw8bit: {lacks}. Its 8-bit moments live on a CUDA GPU: use adamw, or pip install "
            "'cprbench[qlora]' on a machine that has one."
        )
    if recipe.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
        raise TrainingError("training.compile = true: there is no C++ compiler here. Install g++, or leave it out.")
    if recipe.compile and recipe.cache_prefix in ("memory", "disk"):
        raise TrainingError(
            f"training.compile = true, training.cache_prefix = {recipe.cache_prefix}: a compiled model begins at its "
            "input. Choose one of them."
        )


def _available(found: Inspected, recipe: TrainingSpec) -> int:
    available = found.counts["train"]
    return available if recipe.max_examples is None else min(available, recipe.max_examples)


def _check_examples(found: Inspected, recipe: TrainingSpec) -> None:
    available, wanted = found.counts["train"], _available(found, recipe)
    if wanted == 0:
        raise TrainingError(
            f"task {found.task.name!r}: zero training examples (the split holds {available}, "
            f"training.max_examples is {recipe.max_examples}). Nothing can be learned from none."
        )


def run_id(spec: RunSpec, block: int, role: str) -> str:
    """Return the id of a run: a hash of what can change its result, of its block and of our minor version.

    Model and files count by their content, not by the path or name under which they were found; hardware is not in it.
    """
    content = spec.model_dump(mode="json")
    for name, before in RECIPE_BEFORE.items():
        if content["training"][name] == before:
            del content["training"][name]
    content["model"] = {"weights_sha256": spec.model.weights_sha256, "kind": spec.model.kind}
    for choice in (content["method"], content["selection"]):
        choice["settings"] = without_paths(choice["settings"])
    minor = ".".join(cprbench.__version__.split(".")[:2])
    return sha256_of({"spec": content, "block": block, "role": role, "version": minor})[:16]


def read_settings(pairs: Sequence[str]) -> dict[str, dict[str, list[Scalar]]]:
    """Return --set ROOM.KEY=VALUE[,VALUE…] as room -> key -> values.

    Rooms are method names, `selection`, `training` and `select`. Raises SpecError with the nearest known room.
    """
    from cprbench.adapt.methods import METHODS

    found: dict[str, dict[str, list[Scalar]]] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        room, dot, key = path.partition(".")
        if not equals or not dot or not key or not text:
            raise SpecError(f"--set {pair!r}: write ROOM.KEY=VALUE, for example --set partial.k=0.15.")
        rooms = [*METHODS, "selection", "training", "select"]
        if room not in rooms:
            raise SpecError(f"--set {pair!r}: unknown room {room!r}. {did_you_mean(room, rooms)}")
        if room == "select":
            room, key = "training", f"select_{key}"
        # A part with an equals sign goes on with the value before it: partial.budget=memory=8GiB,time=0.5 is one.
        values = [_scalar(part) for part in re.split(r",(?![a-z]+=)", text)]
        if room == "training" and len(values) > 1:
            raise SpecError(f"--set {pair!r}: the recipe is the same for all arms, so it takes one value.")
        if room == "training" and key not in TrainingSpec.model_fields:
            hint = did_you_mean(key, TrainingSpec.model_fields)
            raise SpecError(f"--set {pair!r}: unknown setting training.{key}. {hint}")
        if key in found.setdefault(room, {}):
            raise SpecError(
                f"--set {pair!r}: {room}.{key} is given twice. Give it once; a list makes one arm per value."
            )
        found[room][key] = values
    return found


def _scalar(text: str) -> Scalar:
    words: dict[str, Scalar] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise SpecError(f"--set …={text}: not a finite number.")
        return value
    return text
