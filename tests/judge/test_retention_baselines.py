"""Which arm is whose baseline in the retention table, read from the specs of both, and what a baseline shows."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.adapt.settings import settings_of
from cprbench.judge.groups import Figure
from cprbench.judge.retention import Baseline
from cprbench.runs import arms
from cprbench.spec import ArmSpec, RunRecord
from tests.judge.test_retention import AT_FLOPS, AT_Q, PICKED, arms_of, references, row_of, run, sweep, table_of
from tests.records_factory import make_record

ALL = "partial k=0.15"
BY_LOT = "random-submodules k=0.15"
NONE_AT_Q = Figure(None, "no random run at equal q ended well")
NONE_AT_FLOPS = Figure(None, "no random run at equal billed FLOPs ended well")


def both(arm: str, *finals: float, **options: Any) -> list[RunRecord]:
    """Return an arm in both blocks."""
    return [run(arm, final, block, **options) for block, final in enumerate(finals or (0.70, 0.74))]


# --- whose baseline ---------------------------------------------------------------------------------


def test_one_arm_is_the_equal_q_baseline_of_every_selection_of_as_much() -> None:
    others = ["partial k=0.15 selection=predicted q=0.3", "partial k=0.15 selection=influence band=50..80"]
    table = {row.arm: row for row in table_of(*sweep(), *(r for arm in others for r in both(arm, q=0.3))).rows}
    assert set(table) == {"full", PICKED, *others}
    for arm in others:
        assert table[arm].random["q"] == table[PICKED].random["q"]
        assert table[arm].random["q"].kept.value == pytest.approx(0.22 / 0.44)
        assert table[arm].random["flops"].kept == NONE_AT_FLOPS  # that bill is another arm's


def test_of_two_draws_the_one_whose_head_was_warmed_as_the_row_s_was_is_the_baseline() -> None:
    warmed = f"{AT_Q} warm=true"
    records = [*references(), *both(PICKED, q=0.3), *both(AT_Q, q=0.3)]
    assert row_of(PICKED, *records).random["q"].kept.value == pytest.approx(0.22 / 0.44)
    more = both(warmed, 0.75, 0.79, q=0.3)
    more = [r.model_copy(update={"spec": _warm(r.spec)}) for r in more]
    assert row_of(PICKED, *records, *more).random["q"].kept.value == pytest.approx(0.32 / 0.44)


def _warm(spec: Any) -> Any:
    selection = spec.selection.model_copy(update={"settings": {**spec.selection.settings, "warm": True}})
    return spec.model_copy(update={"selection": selection})


@pytest.mark.parametrize(
    "arm",
    [
        "partial k=0.15 selection=influence q=0.31",
        "partial k=0.15 selection=influence q=0.3 class_guard=true",
        "partial k=0.15 selection=influence q=0.3 band=20..80",  # a band leaves q unused
        "partial k=0.15 selection=influence q=0.3 band=wide",
        "partial k=0.15 selection=influence q=most",
        "partial k=0.2 selection=influence q=0.3",
        "partial k=0.15 pick=density selection=influence q=0.3",
        "full selection=influence q=0.3",
    ],
)
def test_what_differs_in_more_than_the_draw_is_no_equal_q_baseline(arm: str) -> None:
    records = [*references(), *both(arm, q=0.3), *both(AT_Q, q=0.3)]
    assert row_of(arm, *records).random["q"].kept == NONE_AT_Q
    assert set(arms_of(*records)) == {"full", arm, AT_Q}


@pytest.mark.parametrize(
    ("arm", "random"),
    [
        ("selection=influence band=20..80", "selection=random q=0.6"),
        ("selection=influence band=33.3..93.4", "selection=random q=0.601"),  # 0.6010000000000001 wide
        ("selection=influence q=0.3 class_guard=true", "selection=random q=0.3 class_guard=true"),
        ("selection=influence band=20..80 class_guard=true", "selection=random q=0.6 class_guard=true"),
    ],
)
def test_a_band_is_as_much_as_it_is_wide_and_a_guarded_draw_stands_beside_a_guarded_choice(
    arm: str, random: str
) -> None:
    arm, random = f"{ALL} {arm}", f"{ALL} {random}"
    records = [*references(), *both(arm, q=0.6), *both(random, q=0.6)]
    assert row_of(arm, *records).random["q"].kept.value == pytest.approx(0.22 / 0.44)
    assert arms_of(*records) == ["full", arm]


@pytest.mark.parametrize("name", ["random", "coreset"])
def test_a_class_guard_that_a_spec_does_not_name_is_none(name: str) -> None:
    bare = {"settings": {"k": 0.15}, "selection": name, "selection_settings": {"q": 0.3}}
    bare_runs = both("a bare spec", method="partial", q=0.3, spec=bare)
    found = arms_of(*references(), *bare_runs, *both(PICKED if name == "random" else AT_Q, q=0.3))
    assert found == ["full", PICKED if name == "random" else "a bare spec"]


@pytest.mark.parametrize("name", ["random", "external", "all"])
def test_what_is_not_chosen_here_has_no_baseline_at_equal_q(name: str) -> None:
    other = {"settings": {"k": 0.15}, "selection": name, "selection_settings": {"q": 0.3, "flops": 400.0}}
    records = [*references(), *both(AT_Q, q=0.3), *both("partial by other means", q=0.3, spec=other)]
    assert arms_of(*records) == ["full", "partial by other means", AT_Q]
    assert row_of("partial by other means", *records).random["q"].kept == NONE_AT_Q


def test_random_data_that_is_nobody_s_baseline_is_a_row() -> None:
    of_another = "partial k=0.15 selection=random flops_of=influence q=0.1"
    by_bill = "partial k=0.15 selection=random flops=400"
    alone = [*references(), *both(AT_Q, q=0.3), *both(of_another, q=0.4), *both(by_bill, q=0.3)]
    assert arms_of(*alone) == ["full", by_bill, of_another, AT_Q]
    assert row_of(AT_Q, *alone).kept.value == pytest.approx(0.22 / 0.44)
    # A bill in numbers serves nobody, though its unused q is that of the row; nor does a note that says so.
    noted = both(by_bill, q=0.3, notes={"baseline": {"of": PICKED, "equal": "q"}})
    assert arms_of(*sweep(), *noted) == ["full", PICKED, by_bill]
    assert row_of(PICKED, *sweep(), *noted).random == row_of(PICKED, *sweep()).random


def test_the_bill_of_an_arm_is_met_by_its_own_method_or_by_another_that_names_it_in_full() -> None:
    elsewhere = f"{BY_LOT} selection=random flops_of={ALL}"
    records = [*references(), *both(ALL, flops=400), *both(elsewhere, 0.64, 0.66, flops=400, q=0.5)]
    assert arms_of(*records) == ["full", ALL]
    assert row_of(ALL, *records).random["flops"].kept.value == pytest.approx(0.08 / 0.44)
    assert row_of(ALL, *records).random["q"].kept == Figure(None, "no draw: it trains on all data")
    picked = f"{BY_LOT} selection=random flops_of={PICKED}"  # its own name holds two selections
    records = [*references(), *both(PICKED, q=0.3), *both(picked, 0.64, 0.66, q=0.5)]
    assert arms_of(*records) == ["full", PICKED]
    assert row_of(PICKED, *records).random["flops"].kept.value == pytest.approx(0.08 / 0.44)


def test_a_bill_is_that_of_the_arm_of_the_same_method_before_that_of_the_arm_so_called() -> None:
    so_called = run("influence q=0.3", 0.7, method="partial")
    records = [*sweep(), so_called]
    assert row_of(PICKED, *records).random["flops"].kept.value == pytest.approx(0.36 / 0.44)
    assert row_of("influence q=0.3", *records).random["flops"].kept == NONE_AT_FLOPS


def test_where_all_data_is_used_as_many_submodules_by_lot_are_the_baseline() -> None:
    records = [*references(), *both(ALL, 0.78, 0.80), *both(BY_LOT)]
    random = row_of(ALL, *records).random
    assert random["q"].kept.value == pytest.approx(0.22 / 0.44)
    assert (random["q"].ratio.value, random["q"].equal) == (1, True)
    assert arms_of(*records, *both("full selection=random q=0.5", q=0.5)) == [
        "full",
        "full selection=random q=0.5",
        ALL,
    ]
    embed = {"settings": {"k": 0.15, "embed": False}}
    assert row_of(ALL, *references(), *both(ALL, 0.78, 0.80, spec=embed), *both(BY_LOT)).random == random


def test_submodules_by_lot_that_reach_another_k_are_not_equal() -> None:
    found = row_of(ALL, *references(), *both(ALL), *both(BY_LOT, k=0.12)).random["q"]
    assert (found.ratio.value, found.equal) == (pytest.approx(0.8), False)
    assert found.kept.value is not None


@pytest.mark.parametrize(
    ("arm", "random"),
    [
        (ALL, "random-submodules k=0.2"),
        (ALL, "random-submodules k=0.15 embed=true"),
        ("partial k=0.15 embed=true", BY_LOT),
        ("partial", "random-submodules"),  # a k that nobody tells is not the same one
        ("last-layers k=0.15", BY_LOT),
        (PICKED, BY_LOT),
        (ALL, "last-layers k=0.15"),
    ],
)
def test_other_submodules_are_no_baseline(arm: str, random: str) -> None:
    records = [*references(), *both(arm, q=0.3 if arm == PICKED else None), *both(random)]
    assert row_of(arm, *records).random["q"].kept.value is None
    assert set(arms_of(*records)) == {"full", arm, random}


@pytest.mark.parametrize("selection", ["random q=0.3", "influence q=0.3"])
def test_submodules_by_lot_on_less_data_are_no_baseline_of_all_data(selection: str) -> None:
    random = f"{BY_LOT} selection={selection}"
    records = [*references(), *both(ALL), *both(random, q=0.3)]
    assert row_of(ALL, *records).random["q"].kept == Figure(None, "no draw: it trains on all data")
    assert arms_of(*records) == ["full", ALL, random]


def test_only_what_is_drawn_by_lot_meets_a_bill_as_a_baseline() -> None:
    other = {"settings": {"k": 0.15}, "selection": "coreset", "selection_settings": {"q": 0.1, "flops_of": PICKED}}
    assert "partial by other means" in arms_of(*sweep(), *both("partial by other means", q=0.1, spec=other))


@pytest.mark.parametrize(
    ("arm", "random", "equal"), [(PICKED, AT_Q, "q"), (PICKED, AT_FLOPS, "flops"), (ALL, BY_LOT, "q")]
)
def test_a_baseline_that_only_failed_is_no_row_and_has_no_number(arm: str, random: str, equal: str) -> None:
    records = [*references(), *both(arm, q=0.3 if arm == PICKED else None), *both(random, status="failed", notes={})]
    none = {"q": NONE_AT_Q, "flops": NONE_AT_FLOPS}[equal]
    assert arms_of(*records) == ["full", arm]
    assert row_of(arm, *records).random[equal] == Baseline(none, none)


def test_the_baseline_of_an_arm_that_only_failed_is_no_row_either() -> None:
    assert arms_of(*references(), *both(PICKED, status="failed"), *both(AT_Q, q=0.3)) == ["full", PICKED]


def test_of_two_arms_that_are_a_baseline_neither_is_taken() -> None:
    other = run(f"{BY_LOT} selection=random flops_of={PICKED}", 0.9, 1)
    row = row_of(PICKED, *sweep(), other)
    assert row.random["flops"].kept == Figure(None, "n/e: more than one random run at equal billed FLOPs in block 1")


def test_a_repeat_of_a_baseline_is_neither_counted_nor_a_row_and_that_of_a_row_has_no_baseline() -> None:
    again = run(AT_Q, 0.9, 1, run_id="f" * 16)  # the same arm and block twice is two rows
    assert table_of(*sweep(), again) == table_of(*sweep())
    repeat = run(PICKED, 0.9, 1, q=0.3, run_id="f" * 16)
    found = {row.arm: row for row in table_of(*sweep(), repeat).rows}
    (name,) = set(found) - {"full", PICKED}
    assert found[name].random["q"].kept == NONE_AT_Q
    assert found[PICKED].random == row_of(PICKED, *sweep()).random


def test_the_table_knows_every_baseline_that_a_suite_plans() -> None:
    guarded = {"q": [0.1, 0.3], "class_guard": [True, False]}
    listed = [
        ArmSpec(method="full"),
        ArmSpec(method="full", selection="influence", selection_settings=guarded, baselines=True),
        ArmSpec(method="full", selection="influence", selection_settings={"band": "20..80"}, baselines=True),
        ArmSpec(method="partial", settings={"k": 0.05}, baselines=True, baseline_method="random-submodules"),
        ArmSpec(method="partial", settings={"k": 0.05}, selection="cross", baselines=True),
    ]
    planned = arms.arms_of(listed)
    records = [_planned(arm, block) for arm in planned for block in (0, 1)]
    rows = {row.arm: row for row in table_of(*references()[:2], *records).rows}
    chosen = {arm.label for arm in planned if "random" not in arm.label}
    assert set(rows) == chosen and len(chosen) == 8 and len(planned) > 16
    for name in chosen - {"full"}:
        assert rows[name].random["q"].kept.value == rows[name].random["flops"].kept.value == pytest.approx(1), name


def _planned(arm: arms.Arm, block: int) -> RunRecord:
    """Return a run of a planned arm, its spec as it is stored."""
    selection = settings_of(arm.selection) | ({"flops": 500.0 + block} if arm.follows else {})
    spec = {"settings": settings_of(arm.method), "selection": arm.selection.name, "selection_settings": selection}
    return make_record(arm=arm.label, block=block, spec=spec, notes={"selection": {"q_reached": 0.3}})


# --- figures ----------------------------------------------------------------------------------------


def test_baselines_are_paired_with_their_row_by_block() -> None:
    random = row_of(PICKED, *sweep()).random
    assert random["q"].kept.value == pytest.approx((0.10 + 0.12) / 0.44)
    assert random["flops"].kept.value == pytest.approx((0.16 + 0.20) / 0.44)
    assert (random["q"].ratio.value, random["flops"].ratio.value) == (1, 1)
    more = [*sweep(), run(AT_Q, 0.99, 2, q=0.3)]  # a block that the row does not have
    assert row_of(PICKED, *more).random == random


def test_a_baseline_that_lacks_a_block_has_no_number() -> None:
    lost = Figure(None, "no random run at equal q ended well in block 1")
    row = row_of(PICKED, *sweep(left_out=f"{AT_Q}/1"))
    assert row.random["q"] == Baseline(lost, lost)
    assert row.random["flops"] == row_of(PICKED, *sweep()).random["flops"]
    failed = [*sweep(left_out=f"{AT_Q}/1"), run(AT_Q, 0.7, 1, status="failed")]
    assert row_of(PICKED, *failed).random["q"].kept == lost


def test_a_row_without_a_baseline_says_which() -> None:
    row = row_of(PICKED, *(r for r in sweep() if r.arm not in (AT_Q, AT_FLOPS)))
    assert row.random["q"].kept.why == "no random run at equal q ended well"
    assert row.random["flops"].kept.why == "no random run at equal billed FLOPs ended well"


def test_nothing_is_drawn_at_equal_q_from_all_data() -> None:
    row = row_of("partial k=0.15", *sweep(), *(run("partial k=0.15", 0.78, block) for block in (0, 1)))
    assert row.random["q"].kept.why == "no draw: it trains on all data"
    assert row.random["flops"].kept.why == "no random run at equal billed FLOPs ended well"


@pytest.mark.parametrize(("second", "equal"), [(840, False), (820, True), (700, False), (None, False)])
def test_a_baseline_that_costs_more_or_less_than_its_row_is_not_equal(second: int | None, equal: bool) -> None:
    random = row_of(PICKED, *sweep(at_flops=(430, second))).random
    expected = Figure(None, "not measured") if second is None else Figure(pytest.approx((430 + second) / 1200))
    assert random["flops"].ratio == expected
    assert random["flops"].kept.value == pytest.approx(0.36 / 0.44)
    assert (random["flops"].equal, random["q"].equal) == (equal, True)
