"""Which arms a suite's lines make: budgets, stop rules, and what contradicts them."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.endings import BudgetSpec
from cprbench.errors import SpecError, TrainingError
from cprbench.runs import planner
from cprbench.runs.arms import arms_of
from cprbench.runs.planner import plan, plan_search
from cprbench.schema import parse
from cprbench.spec import ArmSpec, SuiteSpec
from cprbench.tasks import load_suite
from tests.runs.test_planned_selections import counted
from tests.runs.test_planner import inspected


def arm(method: str = "full", **keys: Any) -> ArmSpec:
    return parse(ArmSpec, {"method": method, **keys}, "test")


def suite(*arms: ArmSpec) -> SuiteSpec:
    return SuiteSpec(tasks=["tiny"], models=["m"], blocks=1, arm=list(arms))


def test_a_list_of_budgets_makes_one_arm_each_and_its_name_says_which() -> None:
    made = arms_of([arm(), arm("lora", budget=["0.25x full", "1x full"]), arm("head", budget="flops=2e9")])
    assert {found.label: found.follows for found in made} == {
        "full": None,
        "lora budget=0.25x full": "full",
        "lora budget=1x full": "full",
        "head budget=flops=2e+09": None,
    }


def test_a_budget_may_be_a_share_of_an_arm_with_settings_and_of_another_resource() -> None:
    partial, hours = (
        arm("partial", settings={"k": 0.15}),
        arm(budget=["0.5x partial k=0.15", "device_hours=2x partial k=0.15", "energy=0.5"]),
    )
    assert [found.label for found in arms_of([partial, hours])][1:] == [
        "full budget=0.5x partial k=0.15",
        "full budget=device_hours=2x partial k=0.15",
        "full budget=energy_kwh=0.5",
    ]


def test_the_name_of_an_arm_that_stops_says_its_eta_and_what_is_unusual() -> None:
    specs = [arm(stop={}), arm(stop={"eta": 3e-15, "window": 5, "resource": "device_hours"})]
    assert [found.label for found in arms_of(specs)] == [
        "full stop=0.1x",
        "full stop=3e-15 window=5 resource=device_hours",
    ]


@pytest.mark.parametrize(
    "text", ["1e12", "flops=", "x full", "0.5 full", "flops=0.5x", "seconds=3", "flops=-1", "flops=inf", "0x full"]
)
def test_a_budget_that_means_nothing_is_refused_with_what_was_found(text: str) -> None:
    with pytest.raises(SpecError, match="budget"):
        arm(budget=text)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([arm("lora", budget="1x full")], "no arm 'full' that ends by itself"),
        ([arm(budget="1x lora"), arm("lora", budget="1x full")], "no arm '(lora|full)' that ends by itself"),
        ([arm(budget="flops=1", stop={})], "stop and budget both say where it ends"),
        (
            [arm(budget="flops=1", selection="random", selection_settings={"flops": 5.0})],
            "budget and selection.flops both say",
        ),
        ([arm(budget="flops=1", selection="influence", baselines=True)], "makes no arm with a budget"),
        ([arm(stop={}, selection="influence", baselines=True)], "makes no arm with a stop"),
        ([arm(stop={"eta": "2x"})], "stop.eta is '2x'"),
        ([arm(budget=["flops=5", "flops=5"])], "listed twice"),
    ],
)
def test_endings_that_contradict_each_other_are_refused(specs: list[ArmSpec], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        arms_of(specs)


def test_an_arm_with_a_budget_runs_after_the_arm_whose_bill_it_is_and_is_known_by_the_amount() -> None:
    specs = [arm("lora", budget="0.5x full"), arm("lora"), arm()]
    *_, last = plan(suite(*specs), [counted()], arms_of(specs), settings={})
    assert (last.arm, last.follows, last.meets) == ("lora budget=0.5x full", "full", "flops")
    one, same, other = (last.billed_like(bill) for bill in (1000, 1000, 1001))
    assert one.spec.budget is not None and one.spec.budget.amount == 500
    assert one.run_id == same.run_id and len({last.run_id, one.run_id, other.run_id}) == 3
    assert one.spec.training == last.spec.training  # what makes a group of comparison does not move


def test_a_whole_bill_keeps_digits_that_a_float_has_not() -> None:
    specs = [arm(), arm("lora", budget="1x full")]
    *_, last = plan(suite(*specs), [counted()], arms_of(specs), settings={})
    budget = last.billed_like(2**60 + 1).spec.budget
    assert budget is not None and budget.amount == 2**60 + 1
    assert BudgetSpec.model_validate_json(budget.model_dump_json()) == budget  # as the child reads it


def test_a_rate_is_searched_once_for_an_arm_and_all_its_budgets() -> None:
    specs = [arm(), arm(budget=["0.5x full", "1x full"]), arm(stop={}), arm("lora", budget="1x full")]
    trials = plan_search(suite(*specs), [counted()], arms_of(specs), settings={"validations": 9}, rates={"": [1e-3]})
    assert [(key[2], [trial.arm for trial in group]) for key, group in trials.items()] == [
        ("full", ["full"]),
        ("lora", ["lora"]),
    ]
    rates = {key: 0.125 for key in trials}
    runs = plan(suite(*specs), [counted()], arms_of(specs), settings={"validations": 9}, chosen_rates=rates)
    assert {run.spec.training.learning_rate for run in runs} == {0.125}


def test_a_rule_that_has_too_few_validations_to_say_anything_is_refused() -> None:
    found = [counted()]
    with pytest.raises(TrainingError, match=r"full stop=0.1x: .*validations, 4 here, .*before the 5th"):
        plan(suite(arm(stop={})), found, arms_of([arm(stop={})]), settings={})
    with pytest.raises(TrainingError, match="0 here"):
        plan(suite(arm(stop={})), [inspected(validation=0)], arms_of([arm(stop={})]), settings={"validations": 9})
    few = {"validations": 20, "epochs": 1, "batch_size": 400}  # of 1,200 examples: three steps
    with pytest.raises(TrainingError, match="3 here"):
        plan(suite(arm(stop={})), [counted(train=1200)], arms_of([arm(stop={})]), settings=few)


@pytest.mark.parametrize(("key", "value"), [("budget", "flops=1e12"), ("stop", {})])
def test_an_ending_in_flops_asks_for_a_model_that_has_a_count(key: str, value: Any) -> None:
    specs = [arm(**{key: value})]
    with pytest.raises(TrainingError, match="no FLOPs to compare by: .*Leave out its (budget|stop rule)"):
        plan(suite(*specs), [inspected()], arms_of(specs), settings={"validations": 9})
    in_hours = [arm(**{key: {"resource": "device_hours"} if key == "stop" else "device_hours=1"})]
    assert plan(suite(*in_hours), [inspected()], arms_of(in_hours), settings={"validations": 9})


def test_the_suite_has_every_arm_at_a_quarter_half_and_all_of_full() -> None:
    labels = [found.label for found in arms_of(load_suite("equal-budget").arm)]
    assert labels[:2] == ["head", "full"] and len(labels) == 17
    for share in ("0.25", "0.5", "1"):
        ends = f" budget={share}x full"
        own = {label.removesuffix(ends) for label in labels if label.endswith(ends)}
        chosen, drawn = "full selection=influence q=0.3", "full selection=random q=0.3 warm=true"
        assert own == {"full", "lora", "partial k=0.15", chosen, drawn}


def test_an_ending_is_in_the_id_of_a_run_and_its_absence_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [arm(), arm(stop={}), arm(budget="flops=5")]
    runs = plan(suite(*specs), [counted()], arms_of(specs), settings={"validations": 9})
    assert len({run.run_id for run in runs}) == 3
    hashed: list[Any] = []
    monkeypatch.setattr(planner, "sha256_of", lambda content: hashed.append(content["spec"]) or "0" * 64)
    for run in sorted(runs, key=lambda run: run.arm):
        planner.run_id(run.spec, run.block, run.role)
    told = [{"stop", "budget", "schedule"} & {*spec, *spec["training"]} for spec in hashed]
    assert told == [set(), {"budget"}, {"stop"}]  # as runs were hashed before there were any
