"""What counts as a sweep: arms that differ in one share alone, at least two shares, and what is fitted to them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cprbench.endings import BudgetSpec, StopSpec
from cprbench.judge.cpr import Group, compare
from cprbench.judge.sweeps import grids, sweeps
from cprbench.spec import RunRecord
from tests.records_factory import make_record, stored_sweep


def arm(name: str, final: float, block: int = 0, k: float | None = None, q: float = 1.0, **spec: Any) -> RunRecord:
    """Return a run that trains k of the submodules on q of the examples, chosen as its name says."""
    chosen = name.partition(" selection=")[2].split(" ")[0]
    overrides: dict[str, Any] = {"k_asked": k, "k_reached": k} if k is not None else {}
    settings = {"k": k} if k is not None else {}
    if chosen:
        spec |= {"selection": chosen, "selection_settings": {"q": q, **spec.get("selection_settings", {})}}
        overrides["notes"] = {"learning_rate_from": "declared", "selection": {"q_reached": q}}
    return make_record(arm=name, block=block, final=final, spec={"settings": settings, **spec}, **overrides)


def group_of(*records: RunRecord) -> Group:
    (group,) = compare([make_record(arm="head", block=b, final=0.5) for b in {r.block for r in records}] + [*records])
    return group


def partials(*, blocks: int = 1, **spec: Any) -> list[RunRecord]:
    """Return method partial at three k whose gains are 0.4 k^0.5, and full at k = 1."""
    ks = (0.0625, 0.25)
    runs = [arm(f"partial k={k}", 0.5 + 0.4 * k**0.5, b, k, **spec) for k in ks for b in range(blocks)]
    return [*runs, *(arm("full", 0.9, b) for b in range(blocks))]


def test_arms_that_differ_in_k_alone_are_a_sweep_that_full_closes() -> None:
    (sweep,) = sweeps(group_of(*partials()))
    assert (sweep.share, sweep.name) == ("k", "partial")
    assert [(point.arm, point.share) for point in sweep.points] == [
        ("partial k=0.0625", 0.0625),
        ("partial k=0.25", 0.25),
        ("full", 1.0),
    ]
    assert [point.kept.value for point in sweep.points] == pytest.approx([0.25, 0.5, 1.0])


def test_the_share_is_the_one_that_was_reached() -> None:
    reached = [r.model_copy(update={"k_reached": 0.05}) if r.arm == "partial k=0.25" else r for r in partials()]
    (sweep,) = sweeps(group_of(*reached))
    assert [point.share for point in sweep.points] == [0.05, 0.0625, 1.0]


def test_full_closes_no_sweep_of_submodules_drawn_by_lot() -> None:
    runs = [arm(f"random-submodules k={k}", 0.7, 0, k) for k in (0.1, 0.2, 0.3)]
    (sweep,) = sweeps(group_of(*runs, arm("full", 0.9)))
    assert [point.share for point in sweep.points] == [0.1, 0.2, 0.3]


def test_two_shares_are_no_sweep_for_any_curve_goes_through_them() -> None:
    assert not sweeps(group_of(arm("partial k=0.25", 0.7, 0, 0.25), arm("full", 0.9)))


def test_the_fit_is_of_gains_and_is_drawn_as_a_share_of_fulls() -> None:
    (sweep,) = sweeps(group_of(*partials(blocks=3)))
    assert sweep.fit.slope.value == pytest.approx(0.5)
    assert sweep.fitted(0.16) == pytest.approx(0.4)
    assert sweep.fit_why is None


def test_a_gain_that_is_not_positive_leaves_no_fit_and_says_why() -> None:
    records = [r for r in partials() if r.arm != "partial k=0.0625"] + [arm("partial k=0.0625", 0.45, 0, 0.0625)]
    (sweep,) = sweeps(group_of(*records))
    assert sweep.fitted(0.5) is None
    assert "gain_not_positive" in str(sweep.fit_why)


def test_block_points_average_to_the_mean_even_where_fulls_gain_differs_by_block() -> None:
    records = [arm("full", 0.9, 0), arm("full", 0.7, 1), arm("full", 0.8, 2)]
    records += [arm("partial k=0.25", final, b, 0.25) for b, final in enumerate((0.7, 0.65, 0.6))]
    records += [arm("partial k=0.5", 0.7, b, 0.5) for b in range(3)]
    (sweep,) = sweeps(group_of(*records))
    by_block = sweep.points[0].kept_by_block
    assert by_block == pytest.approx([0.2 / 0.3, 0.15 / 0.3, 0.1 / 0.3])
    assert math.fsum(by_block) / 3 == pytest.approx(sweep.points[0].kept.value)


def test_the_fit_takes_the_blocks_that_all_arms_have() -> None:
    records = [r for r in partials(blocks=3) if not (r.arm == "partial k=0.25" and r.block == 2)]
    (sweep,) = sweeps(group_of(*records))
    assert sweep.fit.slope.n == 2


def test_an_arm_that_failed_stays_in_the_sweep_without_a_value() -> None:
    failed = make_record(arm="partial k=0.5", status="failed", spec={"settings": {"k": 0.5}}, k_asked=0.5)
    (sweep,) = sweeps(group_of(*partials(), failed))
    assert [(p.arm, p.share, p.kept.why) for p in sweep.points if p.kept.value is None] == [
        ("partial k=0.5", 0.5, "no run ended well")
    ]
    assert sweep.fit.slope.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"k": 0.25, "pick": "random"}},
        {"stop": StopSpec(eta="0.1x")},
        {"training": {"learning_rate": 1e-2}},
        {"method": "random-submodules", "settings": {"k": 0.25}},
    ],
    ids=["setting", "stop rule", "learning rate", "method"],
)
def test_arms_that_differ_in_more_than_k_are_no_sweep(other: dict[str, Any]) -> None:
    record = make_record(arm="partial else", final=0.7, spec={"settings": {"k": 0.25}, **other}, k_reached=0.25)
    assert not sweeps(group_of(arm("partial k=0.5", 0.8, 0, 0.5), record))


def test_an_arm_repeated_at_another_rate_is_no_second_point() -> None:
    again = make_record(
        arm="partial k=0.25",
        final=0.1,
        spec={"settings": {"k": 0.25}, "training": {"learning_rate": 1e-2}},
        k_reached=0.25,
        notes={"learning_rate_from": "given"},
    )
    (sweep,) = sweeps(group_of(*partials(), again))
    assert [point.share for point in sweep.points] == [0.0625, 0.25, 1.0]


def test_arms_of_equal_budgets_are_a_sweep_that_full_of_that_budget_closes() -> None:
    ends: dict[str, Any] = {"budget": BudgetSpec(resource="flops", amount=5.0, share=0.5, of="full")}
    names = [f"partial k={k} budget=0.5x full" for k in (0.25, 0.5)]
    runs = [arm(name, 0.7, 0, k, **ends) for name, k in zip(names, (0.25, 0.5), strict=True)]
    (sweep,) = sweeps(group_of(*runs, arm("full budget=0.5x full", 0.8, **ends), arm("full", 0.9)))
    assert [point.arm for point in sweep.points] == [*names, "full budget=0.5x full"]


def test_arms_drawn_to_the_bill_of_another_are_in_no_sweep_over_k() -> None:
    billed: dict[str, Any] = {"selection": "random", "selection_settings": {"flops_of": "influence", "flops": 1.0}}
    runs = [
        make_record(
            arm=f"partial k={k} selection=random flops_of=influence", spec={"settings": {"k": k}, **billed}, k_reached=k
        )
        for k in (0.1, 0.2, 0.3)
    ]
    assert not sweeps(group_of(*runs, arm("full", 0.9)))


def test_the_same_share_twice_is_no_sweep() -> None:
    runs = [r.model_copy(update={"k_reached": 0.2}) for r in partials() if r.arm != "full"]
    assert not sweeps(group_of(*runs))


def test_a_sweep_over_q_is_closed_by_its_method_on_all_data() -> None:
    runs = [arm(f"full selection=influence q={q}", 0.5 + 0.4 * q, q=q) for q in (0.25, 0.5)]
    runs += [arm(f"partial k=0.1 selection=influence q={q}", 0.6, 0, 0.1, q) for q in (0.25, 0.5)]
    over_q = [s for s in sweeps(group_of(*runs, arm("full", 0.9), arm("partial k=0.1", 0.7, 0, 0.1))) if s.share == "q"]
    assert [(s.name, s.points[-1].arm, s.points[-1].share) for s in over_q] == [
        ("full selection=influence", "full", 1.0),
        ("partial k=0.1 selection=influence", "partial k=0.1", 1.0),
    ]
    assert over_q[0].fit.slope.value == pytest.approx(1.0)


def test_bands_and_draws_to_a_bill_are_no_shares() -> None:
    bands = [
        arm(f"full selection=influence band={b}", 0.7, q=q, selection_settings={"q": 0.3, "band": b})
        for b, q in (("0..50", 0.5), ("20..80", 0.6))
    ]
    bills = [
        arm(f"full selection=random flops={f}", 0.7, q=q, selection_settings={"q": q, "flops": f})
        for f, q in ((1e6, 0.5), (1e6, 0.6))
    ]
    assert not sweeps(group_of(*bands, *bills, arm("full", 0.9)))


def test_the_stored_sweep_over_both_is_a_grid_with_the_paper_reference_in_its_corner() -> None:
    (group,) = compare(stored_sweep("k-by-q"))
    (grid,) = grids(group)
    assert grid.name == "partial selection=influence"
    assert {cell[0] for cell in grid.cells} == set(grid.ks) and grid.ks[-1] == grid.qs[-1] == 1.0
    assert grid.cells[1.0, 1.0].arm == "full"
    assert grid.cells[grid.ks[0], grid.qs[0]].arm == f"partial k={grid.ks[0]:g} selection=influence q={grid.qs[0]:g}"


def test_a_share_with_one_cell_alone_is_not_in_the_grid() -> None:
    runs = [arm(f"partial k={k} selection=influence q={q}", 0.7, 0, k, q) for k in (0.1, 0.2) for q in (0.25, 0.5)]
    runs += [arm("partial k=0.3", 0.7, 0, 0.3), arm("partial k=0.1", 0.7, 0, 0.1), arm("full", 0.9)]
    (grid,) = grids(group_of(*runs))
    assert (grid.ks, grid.qs) == ((0.1, 0.2), (0.25, 0.5))  # k = 0.3 and 1 have all data alone, which k = 0.1 has then


def test_where_all_data_is_used_twice_the_grid_shows_the_arm_that_chose_nothing() -> None:
    runs = [arm(f"partial k={k} selection=influence q={q}", 0.7, 0, k, q) for k in (0.1, 0.2) for q in (0.5, 1.0)]
    runs += [arm(f"partial k={k}", 0.7, 0, k) for k in (0.1, 0.2)] + [arm("full", 0.9)]
    (grid,) = grids(group_of(*runs))
    assert [grid.cells[k, 1.0].arm for k in (0.1, 0.2)] == ["partial k=0.1", "partial k=0.2"]


def test_one_share_alone_is_no_grid() -> None:
    assert not grids(group_of(*partials()))
