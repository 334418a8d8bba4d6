"""ArmSpec -> arms: every combination of listed settings and budgets, and the baselines by lot. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cprbench.adapt.methods import Method, build_method, named
from cprbench.adapt.selection import Selection, build_selection, selection_label
from cprbench.adapt.selection.ranking import parse_band
from cprbench.adapt.settings import PIN, label, settings_of
from cprbench.adapt.stopping import StopRule
from cprbench.endings import BudgetSpec, StopSpec
from cprbench.errors import SpecError, did_you_mean
from cprbench.spec import ArmSpec, Choice, RunSpec, Scalar


@dataclass(frozen=True)
class Arm:
    """A method with its settings and a selection, ready to be planned."""

    method: Method
    selection: Selection
    follows: str | None = None  # the arm whose bill it has to meet, so that it runs after it
    stop: StopSpec | None = None
    budget: BudgetSpec | None = None
    snapshots: tuple[float, ...] = ()  # shares of its steps at which it writes a blueprint

    @property
    def label(self) -> str:
        """The arm's name: "partial k=0.15 selection=influence q=0.3 budget=0.5x full"."""
        ending = (end.label for end in (self.budget, self.stop) if end is not None)
        return " ".join(filter(None, (label(self.method), selection_label(self.selection), *ending)))

    @property
    def freely(self) -> Arm:
        """The same arm ending where the recipe does; its learning rate is searched so."""
        return self if self.stop is None and self.budget is None else Arm(self.method, self.selection)


def arms_of(specs: Sequence[ArmSpec]) -> list[Arm]:
    """Return the arms of a suite; list-valued settings make one arm per combination.

    Raises SpecError for unknown methods, settings and selections, for arms that are the same twice, and for endings
    that contradict each other or hang on an arm that is not there.
    """
    arms: dict[str, Arm] = {}
    baselines: dict[str, Arm] = {}
    for spec in specs:
        name, file = named(spec.method)
        if both := sorted(set(file) & set(spec.settings)):
            raise SpecError(f"method {spec.method!r} names its file itself. Leave out {name}.{both[0]}.")
        for settings, chosen, budget in itertools.product(
            _combined({**spec.settings, **file}), _combined(spec.selection_settings), spec.budget or (None,)
        ):
            arm = Arm(build_method(name, settings), build_selection(spec.selection, chosen), stop=spec.stop)
            arm = replace(arm, snapshots=spec.snapshots)
            if budget is not None:
                arm = replace(arm, budget=budget, follows=budget.of)
            _check_ending(arm, spec)
            if arm.label in arms:
                raise SpecError(f"arm {arm.label!r} is listed twice. Leave one out, or give its file another name.")
            arms[arm.label] = arm
            if spec.baselines:
                found = _baselines(arm, spec.baseline_method or spec.method)
                baselines |= {baseline.label: baseline for baseline in found}
    for arm in arms.values():
        if arm.follows is not None and (arm.follows not in arms or arms[arm.follows].follows is not None):
            free = [name for name, other in arms.items() if other.budget is None]
            hint = did_you_mean(arm.follows, free) if free else "None does: list it without a budget."
            raise SpecError(f"arm {arm.label!r}: no arm {arm.follows!r} that ends by itself. {hint}")
    return list((arms | {name: arm for name, arm in baselines.items() if name not in arms}).values())


def arm_of(spec: RunSpec, files: Mapping[str, Mapping[str, str]] | None = None) -> Arm:
    """Return the arm that a stored spec is a run of. `files`: method | selection -> setting -> where its file is here.

    Raises CprbenchError where there is no such arm.
    """

    def given(choice: Choice, room: str) -> dict[str, Scalar]:
        here = (files or {}).get(room, {})
        return {key: here.get(key, value) for key, value in choice.settings.items() if not key.endswith(PIN)}

    method = build_method(spec.method.name, given(spec.method, "method"))
    selection = build_selection(spec.selection.name, given(spec.selection, "selection"))
    follows = getattr(selection, "flops_of", None) or None if spec.budget is None else spec.budget.of
    return Arm(method, selection, follows, spec.stop, spec.budget, tuple(spec.snapshots))


def single(specs: Sequence[ArmSpec]) -> list[ArmSpec]:
    """Return arms without lists of settings: one spec for each of their combinations."""
    return [
        spec.model_copy(update={"settings": settings, "selection_settings": chosen})
        for spec in specs
        for settings in _combined(spec.settings)
        for chosen in _combined(spec.selection_settings)
    ]


def _check_ending(arm: Arm, spec: ArmSpec) -> None:
    if arm.stop is not None:
        StopRule(**arm.stop.model_dump())  # refuses an eta that means nothing
    ways = {
        "stop": arm.stop is not None,
        "budget": arm.budget is not None,
        "selection.flops": bool(getattr(arm.selection, "flops", 0)),
    }
    given = [way for way, on in ways.items() if on]
    if arm.snapshots and getattr(arm.method, "adapts", False):
        raise SpecError(f"arm {arm.label!r}: snapshots are of a model's own submodules, and this method adds adapters.")
    if arm.snapshots and arm.budget is not None and arm.budget.resource != "flops":
        raise SpecError(
            f"arm {arm.label!r}: nobody knows its steps beforehand, so no shares of them. Leave snapshots out."
        )
    if arm.snapshots and arm.stop is not None:
        raise SpecError(
            f"arm {arm.label!r}: snapshots are at shares of its planned steps, and a stop rule may end it before them. "
            "Leave one out."
        )
    if len(given) > 1:
        raise SpecError(f"arm {arm.label!r}: {' and '.join(given)} both say where it ends. Leave one out.")
    if given and spec.baselines and given != ["selection.flops"]:
        raise SpecError(f"arm {arm.label!r}: baselines = true makes no arm with a {given[0]}. List those arms instead.")


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
