"""Suite -> runs: everything that can be refused is refused here, before anything runs."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from cprbench.adapt.methods import METHODS, build_method
from cprbench.adapt.selection import build_selection
from cprbench.errors import CprbenchError, MethodError, SpecError, TrainingError
from cprbench.runs.arms import Arm, arms_of
from cprbench.runs.planner import Inspected, Planned, plan, plan_search, run_id
from cprbench.runs.set_words import read_settings
from cprbench.schema import parse
from cprbench.spec import ArmSpec, Limits, ModelRef, RunSpec, Search, SuiteSpec, TaskRef, TaskSpec, block_seed

#: N = 100; the smallest submodule holds 0.1 of it.
SIZES = {"embed": 40, "attn.0": 10, "ffn.0": 20, "attn.1": 10, "ffn.1": 20}


def inspected(
    *,
    kind: Literal["encoder", "causal"] = "encoder",
    source: str = "minilm",
    weights: str = "a" * 64,
    train: int = 100,
    validation: int = 10,
    task: str = "tiny",
    training: dict[str, Any] | None = None,
) -> Inspected:
    """Return what a child would have found out about a small task and model."""
    data: dict[str, Any] = {
        "name": task,
        "version": 1,
        "domain": "general",
        "license": "MIT",
        "citation": "none",
        "chance": 0.5,
        "primary": "accuracy",
        "metrics": ["accuracy"],
        "source": [{"kind": "inline", "rows": []}],
        "splits": {"by": "hash", "test": 0.2},
        "example": {"kind": "choice", "prompt": "{text}", "answer": "label", "choices": ["x", "y"]},
        "training": training or {},
    }
    model = ModelRef(
        source=source, label=source, revision=None, weights_sha256=weights, parameters=100, kind=kind, config={}
    )
    counts = {"train": train, "validation": validation, "test": 20}
    ref = TaskRef(name=task, version=1, data_sha256="d" * 64)
    return Inspected(parse(TaskSpec, data, "tiny.toml"), ref, counts, model, SIZES, kind == "encoder", 2)


def suite(*arms: ArmSpec, **overrides: Any) -> SuiteSpec:
    data: dict[str, Any] = {
        "tasks": ["tiny"],
        "models": ["minilm"],
        "blocks": 1,
        "arm": arms or [ArmSpec(method="full")],
    }
    return SuiteSpec(**(data | overrides))


def arm(method: str = "full", **settings: Any) -> ArmSpec:
    return ArmSpec(method=method, settings=settings)


def planned(
    *arms: ArmSpec, found: Inspected | None = None, settings: dict[str, Any] | None = None, **overrides: Any
) -> list[Planned]:
    """Return the plan of a suite on one model."""
    asked = suite(*arms, **overrides)
    return plan(asked, [found or inspected()], arms_of(asked.arm), settings=settings or {})


def only(*arms: ArmSpec, **asked: Any) -> Planned:
    (run,) = planned(*arms, **asked)
    return run


# --- arms -------------------------------------------------------------------------------------------


def test_every_value_of_a_list_makes_an_arm() -> None:
    labels = [found.label for found in arms_of([arm("partial", k=[0.15, 0.3]), arm("full")])]
    assert labels == ["partial k=0.15", "partial k=0.3", "full"]


def test_lists_of_several_settings_make_every_combination() -> None:
    labels = [found.label for found in arms_of([arm("partial", k=[0.2, 0.3], embed=[True, False])])]
    assert labels == ["partial k=0.2 embed=true", "partial k=0.2", "partial k=0.3 embed=true", "partial k=0.3"]


@pytest.mark.parametrize(
    "specs",
    [
        [arm("full"), arm("full")],
        [arm("partial", k=[0.2, 0.2])],
        [arm("partial", k=0.15), arm("partial")],  # the default, said and unsaid
        [arm("partial", k=1), arm("partial", k=1.0)],
    ],
)
def test_an_arm_that_is_listed_twice_is_refused(specs: list[ArmSpec]) -> None:
    with pytest.raises(SpecError, match=r"arm '(full|partial k=.*)' is listed twice\. Leave one out"):
        arms_of(specs)


def test_two_arms_never_have_the_same_name() -> None:
    labels = [found.label for found in arms_of([arm("partial", k=[0.1500001, 0.1500002])])]
    assert len(set(labels)) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (arm("lroa"), "unknown method 'lroa'. Did you mean 'lora'?"),
        (ArmSpec(method="full", selection="al"), "unknown selection 'al'. Did you mean 'all'?"),
        (arm("partial", kk=0.1), "unknown setting partial.kk. Did you mean 'k'?"),
        (arm("partial", embedd=True), "unknown setting partial.embedd. Did you mean 'embed'?"),
        (arm("full", k=0.1), "unknown setting full.k. Method 'full' has no settings."),
        (ArmSpec(method="full", selection_settings={"q": 0.1}), "Selection 'all' has no settings"),
    ],
)
def test_an_unknown_name_in_an_arm_names_the_nearest_one(spec: ArmSpec, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        arms_of([spec])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("method", "setting", "value", "needed"),
    [
        ("partial", "k", "much", "number"),
        ("partial", "k", True, "number"),
        ("partial", "k", None, "number"),
        ("partial", "embed", 1, "boolean"),
        ("partial", "embed", "true", "boolean"),
        ("lora", "r", 8.0, "integer"),
        ("lora", "r", "8", "integer"),
        ("lora", "r", True, "integer"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(method: str, setting: str, value: Any, needed: str) -> None:
    with pytest.raises(SpecError, match=rf"{method}\.{setting} = {value!r}: it should be a valid {needed}"):
        arms_of([arm(method, **{setting: value})])


def test_a_whole_number_will_do_where_a_number_is_needed() -> None:
    (found,) = arms_of([arm("partial", k=1)])
    assert found.label == "partial k=1"
    assert found == Arm(build_method("partial", {"k": 1.0}), build_selection("all", {}))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_an_arm_with_its_defaults(name: str) -> None:
    (found,) = arms_of([arm(name)])
    assert found.method.name == name
    assert found.label.split()[0] == name
    assert set(found.method.learning_rates) <= {"encoder", "causal"}


# --- settings of the command line -------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "0.1,nan"])
def test_a_setting_that_is_no_number_is_refused_in_words(value: str) -> None:
    with pytest.raises(CprbenchError):
        planned(*(arm(room, **keys) for room, keys in read_settings([f"partial.k={value}"]).items()))


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "fast"])
def test_a_learning_rate_that_is_none_is_refused_before_anything_runs(value: str) -> None:
    with pytest.raises(SpecError, match="learning_rate|finite"):
        given = read_settings([f"training.learning_rate={value}"])["training"]
        planned(settings={key: values[0] for key, values in given.items()})


# --- the plan ---------------------------------------------------------------------------------------


def test_a_plan_has_every_arm_in_every_block_of_every_task_and_model() -> None:
    asked = suite(arm("full"), arm("partial", k=[0.2, 0.3]), blocks=2)
    places = [inspected(), inspected(task="other"), inspected(weights="b" * 64)]
    runs = plan(asked, places, arms_of(asked.arm), settings={})
    assert len(runs) == len({run.run_id for run in runs}) == 3 * 2 * 3
    for place in range(3):
        for block in range(2):
            group = runs[place * 6 + block * 3 :][:3]
            assert {run.arm for run in group} == {"full", "partial k=0.2", "partial k=0.3"}
            assert {run.block for run in group} == {block}


def test_all_arms_of_a_block_share_its_seed_and_its_recipe() -> None:
    runs = planned(arm("head"), arm("full"), arm("lora"), arm("partial", k=[0.2, 0.5]))
    assert {run.spec.seed for run in runs} == {block_seed("tiny", 1, "a" * 64, 0)}
    recipes = {run.spec.training.model_copy(update={"learning_rate": None}).model_dump_json() for run in runs}
    assert len(recipes) == 1


def test_the_order_of_arms_differs_by_block_and_is_the_same_at_every_call() -> None:
    arms = [arm("head"), arm("full"), arm("lora"), arm("partial", k=[0.2, 0.3, 0.5])]
    runs = planned(*arms, blocks=8)
    orders = [tuple(run.arm for run in runs if run.block == block) for block in range(8)]
    assert len(set(orders)) > 1
    assert planned(*arms[::-1], blocks=8) == runs


def test_a_rate_is_the_one_set_else_the_one_found_else_the_declared_default() -> None:
    default = build_method("full", {}).learning_rates
    assert only().spec.training.learning_rate == default["encoder"]
    assert only(found=inspected(kind="causal")).spec.training.learning_rate == default["causal"]
    assert only(found=inspected(training={"learning_rate": 0.5})).spec.training.learning_rate == 0.5
    assert only(settings={"learning_rate": 0.25}).spec.training.learning_rate == 0.25
    asked = suite()
    search = Search(trials=1, runs=["a" * 16], learning_rates=[0.125])
    key = ("tiny", "minilm", "full")
    (run,) = plan(
        asked, [inspected()], arms_of(asked.arm), settings={}, searched={key: search}, chosen_rates={key: 0.125}
    )
    assert (run.spec.training.learning_rate, run.search) == (0.125, search)


def test_the_recipe_is_the_task_s_then_the_limits_then_the_suite_s_then_the_command_line_s() -> None:
    found = inspected(training={"epochs": 5, "batch_size": 5, "max_tokens": 50})
    run = only(found=found, training={"epochs": 4, "batch_size": 4}, settings={"epochs": 3})
    assert (run.spec.training.epochs, run.spec.training.batch_size, run.spec.training.max_tokens) == (3, 4, 50)


def test_limits_of_a_named_suite_rank_and_limits_of_the_command_line_make_a_smoke_test() -> None:
    limits = Limits(max_examples=50, eval_items=10)
    named = only(name="quick", version=3, limits=limits)
    assert (named.role, named.suite, named.suite_version) == ("run", "quick", 3)
    assert named.limits == {"max_examples": 50, "eval_items": 10}
    for settings in ({"max_examples": 50}, {"eval_items": 10}):
        smoke = only(settings=settings)
        assert (smoke.role, smoke.limits) == ("smoke", settings)
    assert (only().role, only().limits, only().suite) == ("run", {}, None)


def test_a_named_suite_with_another_recipe_is_a_smoke_test_of_that_suite() -> None:
    changed = only(name="quick", version=3, settings={"epochs": 3})
    assert (changed.role, changed.suite, changed.suite_version) == ("smoke", "quick", 3)
    assert only(settings={"epochs": 3}).role == "run"  # of no suite: a recipe like any other


def test_a_search_is_one_trial_per_rate_and_arm_on_the_seed_of_block_0() -> None:
    asked = suite(arm("full"), arm("lora"), blocks=3)
    trials = plan_search(asked, [inspected()], arms_of(asked.arm), settings={}, rates={"": [1e-4, 1e-3]})
    assert set(trials) == {("tiny", "minilm", "full"), ("tiny", "minilm", "lora")}
    for group in trials.values():
        assert [trial.spec.training.learning_rate for trial in group] == [1e-4, 1e-3]
        assert {(trial.role, trial.block) for trial in group} == {("search", 0)}
        assert {trial.spec.seed for trial in group} == {block_seed("tiny", 1, "a" * 64, 0)}


def test_no_rate_is_searched_without_a_validation_split() -> None:
    asked = suite()
    with pytest.raises(SpecError, match="'tiny' has no validation split"):
        plan_search(asked, [inspected(validation=0)], arms_of(asked.arm), settings={}, rates={"": [1e-4]})


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.0, -0.5, 1.5])
def test_a_k_outside_its_range_is_refused_at_plan_time(k: float) -> None:
    with pytest.raises(MethodError, match=r"outside \(0, 1\]"):
        planned(arm("partial", k=k))


def test_a_k_below_the_smallest_submodule_is_refused_at_plan_time() -> None:
    with pytest.raises(MethodError, match=r"below the smallest submodule: 'attn\.0' holds 0\.1"):
        planned(arm("full"), arm("partial", k=[0.3, 0.05]))


@pytest.mark.parametrize("settings", [{"r": 0}, {"r": -8}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_an_adapter_that_cannot_be_is_refused_at_plan_time(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=r"lora\.r = "):
        planned(arm("lora", **settings))


def test_head_is_refused_on_causal_models() -> None:
    with pytest.raises(MethodError, match="causal models have none"):
        planned(arm("head"), found=inspected(kind="causal"))
    assert planned(arm("head"), found=inspected(kind="encoder"))


@pytest.mark.parametrize("asked", [{"settings": {"max_examples": 0}}, {"found": inspected(train=0)}])
def test_zero_examples_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="zero training examples"):
        planned(**asked)


def test_nothing_is_planned_when_one_arm_of_many_is_refused() -> None:
    with pytest.raises(CprbenchError):
        planned(arm("full"), arm("lora", r=0), blocks=2)


# --- ids --------------------------------------------------------------------------------------------


def spec(run: Planned, **changes: Any) -> RunSpec:
    """Return the spec of a run with changes given as path__to__field=value."""
    data = run.spec.model_dump()
    for path, value in changes.items():
        *rooms, key = path.split("__")
        place = data
        for room in rooms:
            place = place[room]
        place[key] = value
    return RunSpec.model_validate(data)


def test_the_id_of_a_run_is_the_same_for_the_same_content() -> None:
    run = only()
    assert run.run_id == run_id(spec(run), 0, "run") == only().run_id
    assert len(run.run_id) == 16
    assert int(run.run_id, 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"task__name": "other"},
        {"task__version": 2},
        {"task__data_sha256": "e" * 64},
        {"model__weights_sha256": "b" * 64},
        {"model__kind": "causal"},
        {"method__name": "lora"},
        {"method__settings": {"k": 0.2}},
        {"selection__name": "random"},
        {"selection__settings": {"q": 0.5}},
        {"seed": 1},
        {"training__epochs": 3},
        {"training__batch_size": 3},
        {"training__max_tokens": 99},
        {"training__learning_rate": 0.5},
        {"training__precision": "fp32"},
        {"training__max_examples": 10},
        {"training__eval_items": 10},
        {"training__validations": 1},
        {"training__select_batches": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_of_a_run_differs_by_whatever_can_change_its_result(change: dict[str, Any]) -> None:
    run = only()
    assert run_id(spec(run, **change), 0, "run") != run.run_id


def test_the_id_of_a_run_differs_by_block_role_and_minor_version(monkeypatch: pytest.MonkeyPatch) -> None:
    run = only()
    ids = {run.run_id, run_id(run.spec, 1, "run"), run_id(run.spec, 0, "smoke"), run_id(run.spec, 0, "search")}
    assert len(ids) == 4
    monkeypatch.setattr("cprbench.__version__", "0.1.99")
    assert run_id(run.spec, 0, "run") == run.run_id
    monkeypatch.setattr("cprbench.__version__", "0.2.0")
    assert run_id(run.spec, 0, "run") not in ids


def test_the_id_of_a_run_does_not_depend_on_where_the_model_was_found() -> None:
    run = only()
    moved = {"model__source": "/somewhere/else", "model__label": "other", "model__revision": "main"}
    assert run_id(spec(run, **moved), 0, "run") == run.run_id
    assert only(found=inspected(source="/somewhere/else")).run_id == run.run_id
