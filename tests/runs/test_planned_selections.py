"""Arms that choose their data: what is planned for them, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from cprbench.errors import MethodError, SpecError, TrainingError
from cprbench.runs.arms import arms_of
from cprbench.runs.planner import plan, plan_search, run_id
from cprbench.runs.set_words import read_settings
from cprbench.spec import ArmSpec, Search
from tests.runs.test_planner import inspected, suite

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "tie_word_embeddings": True,
    "num_key_value_heads": 2,
}


def counted(**more: int) -> object:
    """Return a causal model whose FLOPs can be counted, so that arms may be matched by them."""
    found = inspected(kind="causal", **more)  # type: ignore[arg-type]
    return type(found)(**{**vars(found), "model": found.model.model_copy(update={"config": LLAMA})})


def influence(**settings: object) -> ArmSpec:
    return ArmSpec(method="full", selection="influence", selection_settings=settings, baselines=True)


def test_lists_of_a_selection_s_settings_make_an_arm_each_and_every_arm_has_two_baselines() -> None:
    arms = {arm.label: arm.follows for arm in arms_of([influence(q=[0.1, 0.3])])}
    assert arms == {
        "full selection=influence q=0.1": None,
        "full selection=influence q=0.3": None,
        "full selection=random q=0.1 warm=true": None,
        "full selection=random q=0.3 warm=true": None,
        "full selection=random flops_of=influence q=0.1 warm=true": "full selection=influence q=0.1",
        "full selection=random flops_of=influence q=0.3 warm=true": "full selection=influence q=0.3",
    }


def test_a_baseline_that_serves_two_arms_or_is_an_arm_itself_runs_once() -> None:
    drawn = ArmSpec(method="full", selection="random", selection_settings={"q": 0.3, "warm": True})
    cross = ArmSpec(method="full", selection="cross", selection_settings={"q": 0.3}, baselines=True)
    labels = [arm.label for arm in arms_of([influence(q=0.3), cross, drawn])]
    assert (
        labels.count("full selection=random q=0.3 warm=true")
        == 1
        == labels.count("full selection=random flops_of=cross q=0.3 warm=true")
    )
    assert len(labels) == 5


def test_the_baseline_of_a_band_draws_as_much_as_the_band_holds_and_guards_classes_alike() -> None:
    labels = [arm.label for arm in arms_of([influence(band="20..80", class_guard=True)])]
    assert "full selection=random q=0.6 class_guard=true warm=true" in labels
    assert "full selection=influence class_guard=true band=20..80" in labels


def test_where_all_data_is_used_submodules_are_drawn_instead() -> None:
    spec = ArmSpec(method="partial", settings={"k": 0.3}, baselines=True, baseline_method="random-submodules")
    assert [(arm.label, arm.follows) for arm in arms_of([spec])] == [
        ("partial k=0.3", None),
        ("random-submodules k=0.3", None),
        ("random-submodules k=0.3 selection=random flops_of=partial k=0.3", "partial k=0.3"),
    ]
    with pytest.raises(SpecError, match="uses all data: its baseline by lot is itself"):
        arms_of([ArmSpec(method="partial", baselines=True)])
    with pytest.raises(SpecError, match="chooses its data, so its baselines train like it"):
        arms_of([influence(q=0.3).model_copy(update={"baseline_method": "lora"})])


def test_an_arm_that_meets_a_bill_comes_after_the_arm_whose_bill_it_is() -> None:
    runs = plan(suite(blocks=2), [counted(train=400)], arms_of([influence(q=[0.5, 0.7])]), settings={})
    for block in (0, 1):
        own = [run for run in runs if run.block == block]
        waits = [run.follows is not None for run in own]
        assert waits == sorted(waits) and sum(waits) == 2
    follower = next(run for run in runs if run.follows)
    assert follower.spec.selection.settings["flops"] == 0
    billed = follower.billed_like(1234)
    assert billed.spec.selection.settings["flops"] == 1234.0
    assert billed.run_id == run_id(billed.spec, billed.block, billed.role) != follower.run_id


def test_a_bill_in_flops_is_refused_where_flops_cannot_be_counted() -> None:
    with pytest.raises(TrainingError, match="there are no FLOPs to compare by"):
        plan(suite(), [inspected(kind="causal", train=400)], arms_of([influence(q=0.5)]), settings={})


def test_a_share_that_keeps_nothing_is_refused_with_the_least_that_keeps_something() -> None:
    with pytest.raises(SpecError, match=r"q = 0.001 of 100 examples keeps none. The smallest q here is 0.01"):
        plan(suite(), [counted(train=100)], arms_of([influence(q=0.001)]), settings={})


@pytest.mark.parametrize(
    ("name", "settings", "warmup"),
    [("influence", {"q": 0.3}, 4), ("cross", {"q": 0.3}, 4), ("iterative", {"q": 0.3, "steps": 1}, 2)],
)
def test_choosing_that_uses_up_every_step_is_refused(name: str, settings: dict[str, float], warmup: int) -> None:
    arms = arms_of([ArmSpec(method="full", selection=name, selection_settings=settings)])
    found = [inspected(train=100)]  # 30 examples in two epochs of two batches
    recipe = {"epochs": 2, "batch_size": 16, "select_warmup_steps": warmup}
    with pytest.raises(TrainingError, match="takes 4 of the run's 4 steps"):
        plan(suite(), found, arms, settings=recipe)
    assert plan(suite(), found, arms, settings={**recipe, "select_warmup_steps": warmup - 1})
    drawn = arms_of([ArmSpec(method="full", selection="random", selection_settings={"q": 0.3})])
    assert plan(suite(), found, drawn, settings=recipe)  # nothing is measured, so no head is warmed


def test_cross_influence_of_a_method_that_trains_no_submodule_is_refused_with_the_arm_s_name() -> None:
    arms = arms_of([ArmSpec(method="head", selection="cross", selection_settings={"q": 0.9})])
    with pytest.raises(MethodError, match=r"^head selection=cross q=0.9: .* 'head' trains none"):
        plan(suite(), [inspected(train=1000)], arms, settings={"select_warmup_steps": 2})


def test_a_search_leaves_followers_out_and_they_take_the_rate_of_what_they_follow() -> None:
    arms, found = arms_of([influence(q=0.5)]), [counted(train=400)]
    trials = plan_search(suite(), found, arms, settings={}, rates={"": [1e-4, 1e-3]})
    assert {key[2] for key in trials} == {"full selection=influence q=0.5", "full selection=random q=0.5 warm=true"}
    key = ("tiny", "minilm", "full selection=influence q=0.5")
    search = Search(trials=2, runs=["a", "b"], learning_rates=[1e-4, 1e-3])
    runs = plan(suite(), found, arms, settings={}, searched={key: search}, chosen_rates={key: 1e-3})
    rates = {run.arm: (run.spec.training.learning_rate, run.rate_from) for run in runs}
    assert rates["full selection=random flops_of=influence q=0.5 warm=true"] == (1e-3, "searched")
    assert rates["full selection=random q=0.5 warm=true"][1] == "declared"


def test_settings_of_a_selection_are_read_from_the_command_line() -> None:
    assert read_settings(["selection.q=0.1,0.3", "selection.band=20..80", "selection.class_guard=true"]) == {
        "selection": {"q": [0.1, 0.3], "band": ["20..80"], "class_guard": [True]}
    }
