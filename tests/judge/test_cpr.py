"""Gain, retained gain and multiple of full, against the formulas written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cprbench.judge.cpr import ArmResult, Group, compare
from cprbench.judge.groups import Figure
from cprbench.spec import RESOURCES, Reading, RunRecord
from tests.records_factory import GPU, make_psi, make_record, make_search

PARTIAL = "partial k=0.15"


def group_of(*records: RunRecord) -> Group:
    (group,) = compare(records)
    return group


def arm_of(name: str, *records: RunRecord) -> ArmResult:
    return {arm.arm: arm for arm in group_of(*records).arms}[name]


def two_blocks(**partial: Any) -> list[RunRecord]:
    """Return head, full and partial in two blocks; gains of full 0.20 and 0.24, of partial 0.15 and 0.16."""
    table = {"head": (0.60, 0.62, 100, 100), "full": (0.80, 0.86, 1000, 1200), PARTIAL: (0.75, 0.78, 500, 400)}
    return [
        make_record(
            arm=arm,
            block=block,
            final=values[block],
            gamma={"flops": values[2 + block]},
            **(partial if arm == PARTIAL else {}),
        )
        for arm, values in table.items()
        for block in (0, 1)
    ]


# --- formulas ---------------------------------------------------------------------------------------


def test_a_gain_with_a_new_head_is_measured_against_method_head_in_the_same_block() -> None:
    arm = arm_of(PARTIAL, *two_blocks())
    assert group_of(*two_blocks()).reference == "head"
    assert arm.base.value == 0.5
    assert arm.reference.value == pytest.approx((0.60 + 0.62) / 2)
    assert arm.final.value == pytest.approx((0.75 + 0.78) / 2)
    assert arm.gain.value == pytest.approx((0.15 + 0.16) / 2)
    assert arm.finals == (0.75, 0.78)
    assert arm.blocks == (0, 1)


def test_a_gain_without_a_new_head_is_measured_against_the_base_of_the_same_block() -> None:
    records = [
        make_record(arm=arm, block=block, base=base, final=final, new_head_parameters=0, spec={"kind": "causal"})
        for arm, rows in {"full": ((0.4, 0.6), (0.5, 0.8)), "lora": ((0.4, 0.55), (0.5, 0.7))}.items()
        for block, (base, final) in enumerate(rows)
    ]
    group = group_of(*records)
    assert group.reference == "base"
    arm = arm_of("lora", *records)
    assert arm.gain.value == pytest.approx((0.15 + 0.2) / 2)
    assert arm.retained_gain.value == pytest.approx(0.35 / 0.5)


def test_the_retained_gain_is_the_mean_gain_over_that_of_full() -> None:
    assert arm_of(PARTIAL, *two_blocks()).retained_gain.value == pytest.approx((0.15 + 0.16) / (0.20 + 0.24))
    assert arm_of("full", *two_blocks()).retained_gain.value == 1
    assert arm_of("head", *two_blocks()).retained_gain.value == 0


def test_the_multiple_of_full_is_the_gain_over_full_s_gain_scaled_to_the_cost_in_each_block() -> None:
    # mean g / mean(g_full,b * gamma_b / gamma_full,b)
    scaled = 0.20 * 500 / 1000 + 0.24 * 400 / 1200
    multiples = arm_of(PARTIAL, *two_blocks()).multiple_of_full
    assert multiples["flops"].value == pytest.approx((0.15 + 0.16) / scaled)
    assert multiples["device_hours"].value == pytest.approx((0.15 + 0.16) / (0.20 + 0.24))  # all runs cost one hour
    assert arm_of("full", *two_blocks()).multiple_of_full["flops"].value == pytest.approx(1)


@pytest.mark.parametrize("metric", ["nll", "bits_per_byte", "loss", "eval_loss", "perplexity"])
def test_a_gain_on_what_falls_is_what_it_fell_by(metric: str) -> None:
    finals = {"head": 0.9, "full": 0.5, PARTIAL: 0.6}
    records = [make_record(arm=arm, base=1.2, final=final, metric=metric) for arm, final in finals.items()]
    assert group_of(*records).metric == metric
    arm = arm_of(PARTIAL, *records)
    assert arm.gain.value == pytest.approx(0.3)
    assert arm.retained_gain.value == pytest.approx(0.75)
    worse = [*records[:2], make_record(arm=PARTIAL, base=1.2, final=1.0, metric=metric)]
    assert arm_of(PARTIAL, *worse).gain.value == pytest.approx(-0.1)
    assert Figure.of(arm_of(PARTIAL, *worse).multiple_of_full["flops"]) == Figure(None, "n/e: gain_not_positive")


def test_the_costs_of_an_arm_are_means_over_its_blocks() -> None:
    arm = arm_of(PARTIAL, *two_blocks())
    assert arm.gamma["flops"].value == 450
    assert arm.seconds.value == 3600
    assert arm.trained_share.value == 0.15
    assert set(arm.gamma) == set(arm.multiple_of_full) == set(RESOURCES)


@given(st.permutations(range(6)))
def test_the_order_of_records_changes_nothing(order: list[int]) -> None:
    records = two_blocks()
    assert compare([records[i] for i in order]) == compare(records)


# --- what has no number -----------------------------------------------------------------------------


def test_a_gain_that_is_not_positive_has_no_multiple() -> None:
    for final in (0.60, 0.40):  # as good as head, and worse
        records = [make_record(arm=a, final=f) for a, f in {"head": 0.6, "full": 0.8, PARTIAL: final}.items()]
        arm = arm_of(PARTIAL, *records)
        assert Figure.of(arm.multiple_of_full["flops"]) == Figure(None, "n/e: gain_not_positive")
        assert arm.retained_gain.value == pytest.approx((final - 0.6) / 0.2)


def test_nothing_is_retained_of_a_gain_of_full_that_is_not_positive() -> None:
    for final in (0.60, 0.55):
        records = [make_record(arm=a, final=f) for a, f in {"head": 0.6, "full": final, PARTIAL: 0.7}.items()]
        arm = arm_of(PARTIAL, *records)
        assert Figure.of(arm.retained_gain) == Figure(None, "n/e: full_gain_not_positive")
        assert Figure.of(arm.multiple_of_full["flops"]) == Figure(None, "n/e: full_gain_not_positive")
        assert arm.gain.value == pytest.approx(0.1)


def test_what_was_not_measured_is_a_reason_and_never_zero() -> None:
    arm = arm_of(PARTIAL, *two_blocks())
    for resource in ("energy_kwh", "co2_kg"):
        assert arm.gamma[resource] == Figure(None, "not measured")
        assert Figure.of(arm.multiple_of_full[resource]) == Figure(None, "not measured")
    half = two_blocks()
    half[-1] = half[-1].model_copy(update={"gamma": half[-1].gamma.model_copy(update={"flops": None})})
    assert arm_of(PARTIAL, *half).gamma["flops"] == Figure(None, "not measured")  # a mean of the rest would flatter
    assert Figure.of(arm_of(PARTIAL, *half).multiple_of_full["flops"]) == Figure(None, "not measured")
    assert arm_of("full", *half).multiple_of_full["flops"].value == 1


def test_a_cost_measured_as_zero_has_no_multiple() -> None:
    records = [make_record(arm="head", final=0.6), make_record(arm="full"), make_record(gamma={"energy_kwh": 0.0})]
    records[1] = make_record(arm="full", gamma={"energy_kwh": 1.0})
    arm = arm_of(PARTIAL, *records)
    assert arm.gamma["energy_kwh"] == Figure(0.0)
    assert Figure.of(arm.multiple_of_full["energy_kwh"]) == Figure(None, "n/e: cost_is_zero")


def test_without_full_in_every_block_nothing_is_compared_with_it() -> None:
    records = two_blocks()
    for left_out in (["full"], ["full", "full"]):
        rest = list(records)
        for arm in left_out:
            rest.remove(next(r for r in rest if r.arm == arm))
        found = arm_of(PARTIAL, *rest)
        assert Figure.of(found.retained_gain) == Figure(None, "no full run in every block")
        assert Figure.of(found.multiple_of_full["flops"]) == Figure(None, "no full run in every block")
        assert found.gain.value is not None


def test_without_a_head_arm_a_new_head_has_no_gain_instead_of_one_against_the_base() -> None:
    records = [record for record in two_blocks() if record.arm != "head"]
    arm = arm_of(PARTIAL, *records)
    assert group_of(*records).reference == "head"
    assert Figure.of(arm.gain) == Figure(None, "no head run in every block")
    assert arm.final.value == pytest.approx(0.765)
    assert arm.base.value == 0.5


def test_without_head_in_every_block_there_is_no_gain() -> None:
    records = [r for r in two_blocks() if (r.arm, r.block) != ("head", 1)]
    assert arm_of(PARTIAL, *records).blocks == (0, 1)
    assert arm_of(PARTIAL, *records).gain.value is None


def test_an_unknown_count_of_trained_parameters_is_no_zero() -> None:
    assert arm_of(PARTIAL, *two_blocks(trained_parameters=None)).trained_share.value is None


def test_an_arm_that_only_failed_has_no_figure() -> None:
    records = [make_record(arm="head", final=0.6), make_record(arm="full"), make_record(status="failed")]
    arm = arm_of(PARTIAL, *records)
    assert (arm.blocks, arm.failed, arm.finals) == ((), 1, ())
    figures = [arm.base, arm.final, arm.gain, arm.seconds, arm.trained_share, arm.retained_gain]
    assert all(figure.value is None and figure.why for figure in [*figures, *arm.gamma.values()])


# --- who is compared with whom ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"hardware_class": GPU},
        {"spec": {"task_version": 2}},
        {"spec": {"task": "banking77"}},
        {"spec": {"model": "another model"}},
        {"spec": {"training": {"epochs": 9}}},
        {"limits": {"max_examples": 100}},
        {"role": "smoke"},
    ],
    ids=["hardware class", "task version", "task", "weights", "recipe", "limits", "smoke"],
)
def test_runs_that_differ_in_more_than_their_arm_are_never_in_one_group(other: dict[str, Any]) -> None:
    groups = compare([make_record(arm="full"), make_record(arm="full", run_id="f" * 16, **other)])
    assert len(groups) == 2
    assert [arm.blocks for group in groups for arm in group.arms] == [(0,), (0,)]


def test_suites_with_the_same_limits_and_recipe_share_a_group_since_a_stored_run_serves_both() -> None:
    full = make_record(arm="full", suite="k-sweep", suite_version=1)
    group = group_of(full, make_record(arm=PARTIAL, suite="q-sweep", suite_version=2, run_id="f" * 16))
    assert group.key["suites"] == ["k-sweep v1", "q-sweep v2"]
    assert [arm.retained_gain.value is None for arm in group.arms] == [True, True]  # head is missing


def test_versions_of_one_suite_with_other_limits_are_never_in_one_group() -> None:
    limits = {1: {"max_examples": 100}, 2: {"max_examples": 200}}
    named = [make_record(suite="quickstart", suite_version=v, run_id=str(v) * 16, limits=limits[v]) for v in limits]
    assert len(compare(named)) == 2


def test_learning_rates_may_differ_between_arms_of_a_group() -> None:
    rates = {"head": 1e-2, "full": 2e-5}
    records = [make_record(arm=arm, spec={"training": {"learning_rate": rate}}) for arm, rate in rates.items()]
    assert [arm.arm for arm in group_of(*records).arms] == ["head", "full"]


def test_an_arm_at_two_learning_rates_is_not_one_run_that_failed() -> None:
    rates = [1e-3, 1e-4]
    records = [make_record(arm="full", final=0.8 + r, spec={"training": {"learning_rate": r}}) for r in rates]
    assert len({record.run_id for record in records}) == 2
    assert sum(arm.failed for group in compare(records) for arm in group.arms) == 0


def test_the_order_of_runs_that_share_arm_and_block_changes_nothing() -> None:
    records = [make_record(arm="full", final=final, run_id=str(i) * 16) for i, final in enumerate((0.7, 0.8))]
    assert compare(records) == compare(records[::-1])


def test_arms_stand_in_the_order_in_which_people_read_them() -> None:
    names = ["partial k=0.3", "lora", "partial k=0.15", "full", "head"]
    assert [arm.arm for arm in group_of(*(make_record(arm=name) for name in names)).arms] == [
        "head",
        "full",
        "lora",
        "partial k=0.15",
        "partial k=0.3",
    ]


def test_no_records_make_no_group() -> None:
    assert compare([]) == []


# --- search, failures, retries ----------------------------------------------------------------------


def trials(**changes: Any) -> list[RunRecord]:
    return [
        make_record(role="search", spec={"training": {"learning_rate": rate}}, gamma={"device_hours": 0.5}, **changes)
        for rate in (1e-4, 1e-3)
    ]


def test_trials_of_a_search_stand_in_its_column_and_nowhere_else() -> None:
    found = trials()
    records = two_blocks(search=make_search(*found))
    without = arm_of(PARTIAL, *two_blocks())
    arm = arm_of(PARTIAL, *records, *found)
    assert (arm.trials, arm.search_seconds.value) == (2, 3600)
    assert (arm.blocks, arm.failed, arm.gain, arm.gamma) == (without.blocks, 0, without.gain, without.gamma)
    assert len(compare([*records, *found])) == 1
    assert compare(found) == []
    assert (without.trials, without.search_seconds.value) == (0, None)


def test_a_search_whose_trials_are_not_here_has_no_cost() -> None:
    found = trials()
    arm = arm_of(PARTIAL, *two_blocks(search=make_search(*found)), found[0])
    assert arm.trials == 2
    assert arm.search_seconds == Figure(None, "the records of its trials are not here")


def test_a_trial_whose_cost_is_unknown_makes_the_cost_of_the_search_unknown() -> None:
    found = trials(seconds={"billed": None})
    arm = arm_of(PARTIAL, *two_blocks(search=make_search(*found)), *found)
    assert arm.search_seconds.value is None


def test_a_failed_block_is_counted_and_not_averaged() -> None:
    records = two_blocks()
    broken = make_record(block=2, status="out_of_memory", gamma={"flops": 10**9})
    arm = arm_of(PARTIAL, *records, broken)
    assert (arm.blocks, arm.failed) == ((0, 1), 1)
    assert arm.gamma["flops"].value == 450
    assert arm.gain == arm_of(PARTIAL, *records).gain
    assert group_of(*records, broken).failures == (broken,)


def test_a_retried_run_replaces_the_first() -> None:
    first = make_record(status="failed")
    again = make_record(run_id=f"{first.run_id}-2", previous=first.run_id, attempts=2, final=0.7)
    arm = arm_of(PARTIAL, first, again)
    assert (arm.blocks, arm.failed, arm.finals) == ((0,), 0, (0.7,))
    assert group_of(first, again).failures == ()


def test_a_run_that_failed_twice_counts_once() -> None:
    first = make_record(status="failed")
    again = make_record(status="timeout", run_id=f"{first.run_id}-2", previous=first.run_id, attempts=2)
    assert arm_of(PARTIAL, first, again).failed == 1
    assert group_of(first, again).failures == (again,)


# --- records that wish no good ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"psi": make_psi(None, None)},
        {"psi": make_psi(None, 0.8)},
        {"psi": make_psi().model_copy(update={"primary": "f1"})},
        {"total_parameters": 0},
        {"arm": "", "method": "full"},
    ],
    ids=["no scores", "no base", "no score of its metric", "no parameters", "no name"],
)
def test_a_record_that_contradicts_itself_stops_no_comparison(overrides: dict[str, Any]) -> None:
    try:
        hostile = make_record(**{"arm": "lora"} | overrides)
    except ValidationError:
        return  # refused when it is read
    assert compare([hostile, make_record(arm="full")])


def test_a_run_whose_psi_was_not_given_has_costs_and_no_gain() -> None:
    arm = arm_of("lora", make_record(arm="lora", psi=make_psi(None, None), new_head_parameters=0))
    assert (arm.blocks, arm.failed, arm.finals) == ((0,), 0, ())
    assert Figure.of(arm.final) == arm.base == Figure.of(arm.gain) == Figure(None, "no psi was given")
    assert arm.retained_gain.value is None
    assert arm.gamma["flops"].value == 1000


def test_readings_do_not_enter_a_comparison_only_gamma_does() -> None:
    modelled = Reading(phase="train", quantity="co2_kg", value=1.0, source="modelled")
    assert arm_of(PARTIAL, make_record(readings=[modelled])).gamma["co2_kg"].value is None


def test_energies_of_two_scopes_are_not_averaged() -> None:
    scopes = ("cpu", "cpu", "gpu")
    records = [
        make_record(arm="full", block=block, gamma={"energy_kwh": 0.1, "co2_kg": 0.01, "energy_scope": scope})
        for block, scope in enumerate(scopes)
    ]
    arm = arm_of("full", *records)
    for resource in ("energy_kwh", "co2_kg"):
        assert arm.gamma[resource] == Figure(None, f"{resource} is of 2 kinds (cpu, gpu)")
    assert arm.gamma["flops"].value == 1000
