"""Claims that stay open, each with its reason: missing, failed and mixed runs, and numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprbench.endings import BudgetSpec, StopSpec
from cprbench.judge.claims import check
from cprbench.judge.evidence import gather
from tests.judge.claims_factory import FULL, HEAD, KEEPS_MOST, PARTIAL, answer, claim, reason_why_open, runs
from tests.records_factory import GPU, make_blocks, make_record, store_run

pytestmark = pytest.mark.usefixtures("items_without_error")


# --- blocks -----------------------------------------------------------------------------------------


def test_a_block_that_an_arm_of_the_claim_lacks_is_named() -> None:
    for arm in (PARTIAL, "full", "head"):
        rest = [r for r in runs() if (r.arm, r.block) != (arm, 4)]
        assert reason_why_open(claim(), *rest) == (
            f"could not be measured: arm {arm!r} lacks block 4, which another arm of the claim has or skips"
        )
    headless = [r for r in runs() if r.arm != "head"]
    assert answer(claim("gain_difference", threshold=-1), *headless).verdict == "supported"  # of two scores
    assert "arm 'head' has no run here" in reason_why_open(claim(), *headless)


def test_blocks_are_those_from_0_on_so_that_nobody_drops_the_worst() -> None:
    without = [r for r in runs() if r.block != 2] + [
        make_record(arm=arm, block=block, final=0.7 + 0.01 * block)
        for arm in ("head", "full", PARTIAL)
        for block in (6,)
    ]
    assert "lacks block 2" in reason_why_open(claim(), *without)
    assert "lacks block 0" in reason_why_open(claim(), *(r for r in [*runs(), *without] if r.block not in (0, 2)))


@pytest.mark.parametrize("statistic", ["retained_gain", "gain_difference", "cost_ratio"])
@pytest.mark.parametrize("arm", ["head", "full"])
def test_a_block_that_head_or_full_started_counts_for_every_claim(statistic: str, arm: str) -> None:
    seventh = make_record(arm=arm, block=6, status="failed")
    told = reason_why_open(claim(statistic, reference="lora"), *runs(), *lora(), seventh)
    assert told.endswith("lacks block 6, which another arm of the claim has or skips")


def lora(**more: Any) -> list[Any]:
    return make_blocks({"lora": [x + 1e-3 * (-1) ** i for i, x in enumerate(FULL)]}, **more)


def test_a_block_that_the_reference_alone_started_is_missing() -> None:
    asked = claim("gain_difference", ">", -1, reference="lora")
    assert answer(asked, *runs(), *lora()).verdict == "supported"
    assert "lacks block 6" in reason_why_open(asked, *runs(), *lora(), make_record(arm="lora", block=6))


def test_a_block_of_an_arm_that_the_claim_is_not_about_counts_for_nothing() -> None:
    assert answer(claim(), *runs(), *lora()[:2]).verdict == "supported"


@pytest.mark.parametrize("arm", [PARTIAL, "full", "head"])
def test_a_failed_block_is_not_left_out_of_a_mean(arm: str) -> None:
    failed = [make_record(arm=name, block=6, status="out_of_memory" if name == arm else "ok", final=0.7 + 0.1 * i)
              for i, name in enumerate(("head", "full", PARTIAL))]  # fmt: skip
    assert f"arm {arm!r} failed in block 6" in reason_why_open(claim(), *runs(), *failed)


def test_nobody_chooses_between_two_runs_of_a_block() -> None:
    again = make_record(block=2, final=0.99, run_id="f" * 16)
    assert f"arm {PARTIAL!r} has block 2 twice" in reason_why_open(claim(), *runs(), again)


def test_a_run_that_ended_well_and_was_run_again_is_not_dropped_for_the_later_one() -> None:
    rest = [r for r in runs() if (r.arm, r.block) != (PARTIAL, 2)]
    first = make_record(block=2, final=0.70, run_id="e" * 16)
    again = make_record(block=2, final=KEEPS_MOST[2], run_id=f"{first.run_id}-2", previous=first.run_id)
    assert "has block 2 twice" in reason_why_open(claim(), *rest, first, again)
    failed = make_record(block=2, status="failed", run_id="e" * 16)
    assert answer(claim(), *rest, failed, again).verdict == "supported"  # a retry of what failed is that block


@pytest.mark.parametrize("name", ["partial k=0.15 (v2)", "partial k=0.15 (lr=0.001, x)"])
def test_an_arm_whose_name_goes_on_after_another_s_is_another_arm(name: str) -> None:
    assert answer(claim(), *runs(), *make_blocks({name: FULL})).verdict == "supported"


# --- recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"training": {"learning_rate": 5e-4}},
        {"settings": {"k": 0.16}},
        {"method": "lora"},
        {"selection": "random"},
        {"selection_settings": {"q": 0.5}},
        {"selection_settings": {"flops": 100.0}},
        {"stop": StopSpec(eta="0.1x")},
        {"budget": BudgetSpec(resource="flops", amount=100.0)},
    ],
    ids=["learning rate", "settings", "method", "selection", "selection settings", "flops", "stop", "budget"],
)
def test_blocks_of_several_recipes_under_one_name_are_no_arm(spec: dict[str, Any]) -> None:
    records = [r for r in runs() if (r.arm, r.block) != (PARTIAL, 2)]
    other = make_record(block=2, final=KEEPS_MOST[2], gamma={"flops": 520}, spec=spec)
    assert f"arm {PARTIAL!r} is of several recipes" in reason_why_open(claim(), *records, other)


def test_a_rate_that_was_searched_and_a_bill_that_is_followed_differ_from_block_to_block() -> None:
    searched = [
        make_record(
            block=b,
            final=KEEPS_MOST[b],
            notes={"learning_rate_from": "searched"},
            spec={
                "training": {"learning_rate": 1e-3 * (b + 1)},
                "selection_settings": {"flops_of": "influence q=0.3", "flops": 100 + b},
                "budget": BudgetSpec(resource="flops", share=0.5, of="full", amount=100 + b),
            },
        )
        for b in range(6)
    ]
    others = [r for r in runs() if r.arm != PARTIAL]
    assert answer(claim(), *others, *searched).verdict == "supported"
    given = [r.model_copy(update={"notes": {"learning_rate_from": "given"}}) for r in searched]
    assert "several recipes" in reason_why_open(claim(), *others, *given)


def test_energy_of_other_parts_is_no_energy_to_compare_with() -> None:
    def of(arm: str, scope: str) -> list[Any]:
        return [
            make_record(
                arm=arm, block=b, final=FULL[b], k_reached=0.5, gamma={"energy_kwh": 1 + b, "energy_scope": scope}
            )
            for b in range(6)
        ]

    heads = make_blocks({"head": HEAD})
    boards, packages = "gpu boards", "rapl packages"
    for statistic in ("cost_ratio", "multiple_of_full"):
        asked = claim(statistic, "<=", 5.0, arm="lora", resource="energy_kwh")
        told = reason_why_open(asked, *heads, *of("lora", boards), *of("full", packages))
        assert told == f"could not be measured: energy_kwh is of 2 kinds ({boards}, {packages})"
        assert "of 2 kinds" not in answer(asked, *heads, *of("lora", boards), *of("full", boards)).reason
    arms = ["lora", "full", "partial"]
    mixed = [*of("lora", boards), *of("full", boards), *of("partial", packages)]
    for statistic, more in (("cost_line_r_squared", {}), ("cost_model_error", {"settings": {"model": "product"}})):
        told = reason_why_open(claim(statistic, "<=", 0.9, arms=arms, resource="co2_kg", **more), *mixed)
        assert "co2_kg is of 2 kinds" in told


# --- groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"hardware_class": GPU}, "hardware_class: "),
        ({"spec": {"task_version": 2}}, "task_version: 1, 2"),
        ({"spec": {"task": "banking77"}}, "task: banking77, movie-snippets"),
        ({"limits": {"max_examples": 8}}, "limits: "),
    ],
    ids=["hardware class", "task version", "task", "limits"],
)
def test_runs_that_may_not_be_mixed_are_named_by_what_differs(other: dict[str, Any], word: str) -> None:
    told = reason_why_open(claim(), *runs(), make_record(arm="lora", **other))
    assert "2 groups that may not be mixed" in told and word in told


def test_a_claim_may_name_the_task_and_model_that_answer_it() -> None:
    elsewhere = make_record(arm="lora", spec={"task": "banking77", "model": "another"})
    assert answer(claim(task="movie-snippets"), *runs(), elsewhere).verdict == "supported"
    assert answer(claim(model="all-MiniLM-L6-v2"), *runs(), elsewhere).verdict == "supported"
    told = reason_why_open(claim(suite="k-sweep", task="boolq", model="x"), *runs(), elsewhere)
    assert told == "there are no runs of suite k-sweep on boolq on x here"


def test_versions_of_a_suite_answer_together_unless_what_they_changed_sets_runs_apart() -> None:
    records = runs(suite="k-sweep", suite_version=1)
    asked = claim(suite="k-sweep")
    newer = make_record(arm="lora", suite="k-sweep", suite_version=2)
    assert answer(asked, *records, newer).verdict == "supported"
    longer = make_record(arm="lora", suite="k-sweep", suite_version=2, spec={"training": {"epochs": 9}})
    assert "2 groups that may not be mixed (recipe: " in reason_why_open(asked, *records, longer)


@pytest.mark.parametrize("suite", [None, "k-sweep"])
def test_a_smoke_test_never_decides_a_claim(suite: str | None) -> None:
    smoke = runs(suite="k-sweep", suite_version=1, role="smoke")
    for asked in (claim(suite=suite), claim("cost_ratio", "<=", 0.9, suite=suite), claim(threshold=2, suite=suite)):
        assert "smoke test" in reason_why_open(asked, *smoke)
    ranked = runs(KEEPS_MOST[::-1], suite="k-sweep", suite_version=1)
    assert answer(claim(suite=suite), *smoke, *ranked).blocks == 6  # and gives way to ranked runs


def test_something_damaged_leaves_no_claim_supported_and_a_refuted_one_refuted(tmp_path: Path) -> None:
    for record in runs():
        store_run(tmp_path, record)
    asked = [claim(), claim("cost_ratio", "<=", 0.6, id="counted"), claim(id="too-much", threshold=1.5)]
    assert [v.verdict for v in check(asked, gather(tmp_path))] == ["supported", "supported", "refuted"]
    (tmp_path / "blueprint.json").write_text('{"layers": 3}')
    found = check(asked, gather(tmp_path))
    assert [v.verdict for v in found] == ["open", "open", "refuted"]
    assert found[0].reason.startswith("could not be measured: 1 damaged, left out, blueprint.json among them; else ")
    assert found[0].value is not None


# --- numbers that are none ------------------------------------------------------------------------


def test_an_arm_that_is_not_here_is_named_with_the_nearest_one() -> None:
    told = reason_why_open(claim(arm="partial k=0.51"), *runs())
    assert "arm 'partial k=0.51' has no run here" in told and PARTIAL in told
    assert reason_why_open(claim(arm="full"), *runs()) == "arm and reference are both 'full'"


def test_runs_that_repeat_one_another_are_never_certain() -> None:
    same = make_blocks({"head": [0.6] * 6, "full": [0.8] * 6, PARTIAL: [0.8] * 6})
    for statistic in ("retained_gain", "gain_difference", "multiple_of_full"):
        told = reason_why_open(claim(statistic, threshold=-1), *same)
        assert told == "could not be measured: no interval (zero_variance)"
    seconds = reason_why_open(claim("cost_ratio", "<=", 5.0, resource="seconds"), *same)
    assert seconds == "could not be measured: no interval (zero_variance)"


def test_a_cost_that_is_zero_or_was_not_measured_has_no_ratio() -> None:
    free = runs(peak_memory_bytes=0)
    told = reason_why_open(claim("cost_ratio", "<=", 2.0, resource="peak_memory_bytes"), *free)
    assert told == "could not be measured: cost_not_positive"
    assert reason_why_open(claim("cost_ratio", "<=", 2.0, resource="energy_kwh"), *runs()) == (
        "could not be measured: not measured"
    )
    assert reason_why_open(claim("multiple_of_full", resource="co2_kg"), *runs()) == (
        "could not be measured: not measured"
    )


def test_below_the_capability_floor_a_multiple_is_never_supported() -> None:
    little = [h + 0.3 * (f - h) for h, f in zip(HEAD, FULL, strict=True)]
    told = reason_why_open(claim("multiple_of_full", ">", 0.1), *runs([x + 1e-3 * i for i, x in enumerate(little)]))
    assert "below the capability floor" in told and "less than 50 %" in told
    wild = [h + g for h, g in zip(HEAD, (0.5, -0.3, 0.4, -0.1, 0.3, -0.05), strict=True)]
    assert "two standard errors" in reason_why_open(claim("multiple_of_full", ">", 0.1), *runs(wild))
    assert answer(claim("multiple_of_full", ">", 1.5), *runs()).verdict == "supported"


def test_a_gain_that_is_not_positive_has_a_retained_gain_and_no_multiple() -> None:
    worse = [h - g for h, g in zip(HEAD, (0.02, 0.03, 0.01, 0.02, 0.03, 0.02), strict=True)]
    kept = answer(claim(threshold=0.5), *runs(worse))
    assert kept.verdict == "refuted" and kept.value is not None and kept.value < 0
    assert answer(claim("multiple_of_full", "<", 1.0), *runs(worse)).value is None
    unsure = [h + g for h, g in zip(HEAD, (0.2, -0.1, 0.15, -0.05, 0.1, 0.05), strict=True)]
    assert "full_gain_not_positive" in reason_why_open(claim(), *runs(full=unsure))
