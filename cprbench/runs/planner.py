"""Suite -> runs. Everything is checked here, before anything runs. Imports no torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cprbench
from cprbench.adapt.methods import Probe, Target
from cprbench.adapt.settings import pinned, without_paths
from cprbench.errors import MethodError, SpecError, TrainingError
from cprbench.meters.flops import supported
from cprbench.runs.arms import Arm
from cprbench.schema import sha256_of
from cprbench.spec import (
    RECIPE_BEFORE,
    Choice,
    ModelRef,
    RunSpec,
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

    @property
    def meets(self) -> str:
        """The resource in which a follower is measured by the arm that it follows."""
        return "flops" if self.spec.budget is None else self.spec.budget.resource

    def billed_like(self, amount: float) -> Planned:
        """Return this run with the bill of the arm that it follows, of which it has to meet all or a share."""
        if (budget := self.spec.budget) is not None:
            # A whole bill stays the whole number that it is: FLOPs may have more digits than a float.
            share = budget.share or 1
            spec = self.spec.model_copy(
                update={"budget": budget.model_copy(update={"amount": amount if share == 1 else share * amount})}
            )
        else:
            selection = self.spec.selection
            chosen = selection.model_copy(update={"settings": {**selection.settings, "flops": float(amount)}})
            spec = self.spec.model_copy(update={"selection": chosen})
        return replace(self, spec=spec, run_id=run_id(spec, self.block, self.role))


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
            if (arm.budget is None and arm.follows) or (arm.method.name not in rates and "" not in rates):
                continue  # not asked for: its declared rate; or there is no bill to meet yet
            key = (found.task.name, found.model.source, arm.freely.label)
            trials[key] = [
                _planned(suite, found, arm.freely, 0, {**settings, "learning_rate": rate}, {}, {}, role="search")
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
    key = (found.task.name, found.model.source, arm.freely.label)
    own = {key: value for key, value in settings.items() if key in ("max_examples", "eval_items")}
    limits = suite.limits.model_dump(exclude_none=True)
    recipe = training_for(found.task, {**limits, **suite.training, **settings}, "--set")
    check_arm(found, arm, recipe)
    rate_from: Literal["given", "searched", "declared"] = "given"
    follows = arm.follows if arm.budget is None else None
    if follows is not None and follows.partition(" ")[0] == arm.method.name:  # only its data differ
        key = (found.task.name, found.model.source, follows)
    if recipe.learning_rate is None:
        rate_from = "searched" if key in rates else "declared"
        rate = rates.get(key) or arm.method.learning_rates[found.model.kind]
        recipe = recipe.model_copy(update={"learning_rate": rate})
    seed = block_seed(found.task.name, found.task.version, found.model.weights_sha256, block)
    (own_settings, method_files), (chosen, selection_files) = pinned(arm.method), pinned(arm.selection)
    method = Choice(name=arm.method.name, settings=own_settings)
    selection = Choice(name=arm.selection.name, settings=chosen)
    spec = RunSpec(
        task=found.task_ref,
        model=found.model,
        method=method,
        selection=selection,
        seed=seed,
        training=recipe,
        stop=arm.stop,
        budget=arm.budget,
        snapshots=() if role == "search" else arm.snapshots,
    )
    # Limits rank only where a named suite version fixes them (DESIGN rule 6); with another recipe it is a trial of it.
    changed = own or (limits if suite.name is None else settings)
    role = role or ("smoke" if changed else "run")
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


def check_arm(found: Inspected, arm: Arm, recipe: TrainingSpec) -> None:
    """Raise SpecError, MethodError or TrainingError where an arm cannot run here by that recipe."""
    _check_examples(found, recipe)
    _check_recipe(found, recipe)
    try:
        target = replace(found.target, probe=Probe(recipe.select_batch_size, recipe.select_warmup_steps))
        arm.method.check(target)
        arm.selection.check(arm.method, target)
        _check_steps(found, arm, recipe)
        _check_bill(found, arm)
    except (MethodError, TrainingError) as error:
        raise type(error)(f"{arm.label}: {error}") from None


def _check_steps(found: Inspected, arm: Arm, recipe: TrainingSpec) -> None:
    """Raise SpecError or TrainingError where nothing is kept or trained, or where a stop rule would be idle."""
    kept = arm.selection.kept(_available(found, recipe))
    before = recipe.select_warmup_steps if found.has_new_head and arm.selection.warms_head else 0
    before += getattr(arm.selection, "trains", 0)
    steps = None if kept is None or arm.budget is not None else recipe.epochs * math.ceil(kept / recipe.batch_size)
    if before and steps is not None and before >= steps:
        raise TrainingError(
            f"choosing takes {before} of the run's {steps} steps ({kept} examples), so none is left to train. Lower "
            "select.warmup_steps, or train on more examples or epochs."
        )
    if arm.stop is not None:
        checks = recipe.validations if found.counts["validation"] else 0
        if steps is not None and checks:  # on the grid of the session, without what is validated while choosing
            grid = {math.ceil(steps * (i + 1) / checks) for i in range(checks)}
            checks = sum(step > before for step in grid)
        if checks < (least := arm.stop.window + arm.stop.patience):
            raise TrainingError(
                f"the stop rule is asked at validations, {checks} here, and says nothing before the {least}th. "
                "Raise training.validations, on a task that has a validation split, or lower stop.window."
            )


def _check_bill(found: Inspected, arm: Arm) -> None:
    """Raise SpecError, MethodError or TrainingError for an arm that must know a bill which cannot be told."""
    if arm.follows is None and getattr(arm.selection, "flops_of", None):
        raise SpecError("selection.flops_of is for suites (baselines = true). Give selection.flops as a number.")
    opaque = getattr(arm.method, "opaque", None)
    by_bill = bool(getattr(arm.selection, "flops", 0))
    if opaque is not None and (arm.selection.warms_head or by_bill):
        name = arm.selection.name
        raise MethodError(f"selection {name!r} asks for what cannot be told: {opaque}. Use a config of plain LoRA.")
    asks = {
        "its budget": arm.budget is not None and arm.budget.resource == "flops",
        "its stop rule (or give stop.resource)": arm.stop is not None and arm.stop.resource == "flops",
        "its baselines": arm.budget is None and arm.follows is not None,
        "selection.flops": by_bill,
    }
    asking = next((name for name, on in asks.items() if on), None)
    if asking and (why := opaque or supported(found.model.config)) is not None:
        raise TrainingError(f"there are no FLOPs to compare by: {why}. Leave out {asking}.")


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


def run_id(spec: RunSpec, block: int, role: str, version: str | None = None) -> str:
    """Return the id of a run: a hash of what can change its result, of its block and of our minor version.

    Model and files count by their content, not by the path or name under which they were found; hardware is not in it.
    """
    content = spec.model_dump(mode="json")
    for name, before in RECIPE_BEFORE.items():
        if content["training"][name] == before:
            del content["training"][name]
    for name in ("stop", "budget", "snapshots"):
        if not content[name]:
            del content[name]
    content["model"] = {"weights_sha256": spec.model.weights_sha256, "kind": spec.model.kind}
    for choice in (content["method"], content["selection"]):
        choice["settings"] = without_paths(choice["settings"])
    minor = ".".join((cprbench.__version__ if version is None else version).split(".")[:2])
    return sha256_of({"spec": content, "block": block, "role": role, "version": minor})[:16]
