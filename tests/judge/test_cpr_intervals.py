"""The intervals of a comparison: where there are some, where there are none and why, and what may be said from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from cprbench.judge import statistics
from cprbench.judge.cpr import ArmResult, compare, cost_ratio
from cprbench.judge.groups import Predictions
from cprbench.judge.statistics import TOO_FEW, ZERO_VARIANCE
from cprbench.render.formats.writing import render_report
from cprbench.spec import RunRecord
from tests.records_factory import make_blocks, make_evidence, make_predictions, make_record

PARTIAL = "partial k=0.15"
HEAD = (0.60, 0.61, 0.59, 0.60, 0.62, 0.58)
FULL_GAINS = (0.20, 0.22, 0.19, 0.21, 0.20, 0.18)
GAINS = (0.17, 0.19, 0.16, 0.18, 0.15, 0.17)
CLEARER = (0.3, 0.0183, 0.0283, 0.3, 0.0183, 0.3)
FLOPS = {"head": [100] * 6, "full": [1000, 1100, 1000, 1050, 990, 1000], PARTIAL: [500, 540, 510, 530, 500, 480]}


def runs(
    gains: Sequence[float] = GAINS, full: Sequence[float] = FULL_GAINS, blocks: int = 6, arm: str = PARTIAL
) -> list[RunRecord]:
    """Return head, full and an arm of these gains, in as many blocks."""
    finals = {
        "head": HEAD[:blocks],
        "full": [h + g for h, g in zip(HEAD, full, strict=True)][:blocks],
        arm: [h + g for h, g in zip(HEAD, gains, strict=True)][:blocks],
    }
    return make_blocks(finals, FLOPS)


def arms_of(records: Sequence[RunRecord], predictions: Predictions | None = None) -> dict[str, ArmResult]:
    (group,) = compare(records, predictions)
    return {arm.arm: arm for arm in group.arms}


# --- intervals --------------------------------------------------------------------------------------


def test_one_and_two_blocks_are_points_and_three_have_an_interval() -> None:
    for blocks in (1, 2):
        arm = arms_of(runs(blocks=blocks))[PARTIAL]
        for estimate in (arm.gain, arm.retained_gain, arm.multiple_of_full["flops"], arm.against_full):
            assert estimate.value is not None
            assert (estimate.low, estimate.high, estimate.why, estimate.n) == (None, None, TOO_FEW, blocks)
        assert arm.quadrant["flops"] == f"psi: {TOO_FEW}"
    arm = arms_of(runs(blocks=3))[PARTIAL]
    expected = stats.ttest_1samp(GAINS[:3], 0).confidence_interval()
    assert (arm.gain.low, arm.gain.high) == pytest.approx(tuple(expected))
    assert arm.retained_gain.low is not None and arm.multiple_of_full["flops"].low is not None


def test_the_retained_gain_and_the_multiple_have_the_paired_interval_of_a_ratio_of_means() -> None:
    arm = arms_of(runs())[PARTIAL]
    kept = statistics.ratio_of_means(GAINS, FULL_GAINS)
    scaled = [g * own / full for g, own, full in zip(FULL_GAINS, FLOPS[PARTIAL], FLOPS["full"], strict=True)]
    multiple = statistics.ratio_of_means(GAINS, scaled)
    for found, wanted in ((arm.retained_gain, kept), (arm.multiple_of_full["flops"], multiple)):
        assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
        assert found.n == 6


def test_the_cost_against_full_is_a_geometric_mean_paired_by_block() -> None:
    arm = arms_of(runs())[PARTIAL]
    logs = [math.log(own / full) for own, full in zip(FLOPS[PARTIAL], FLOPS["full"], strict=True)]
    low, high = stats.ttest_1samp(logs, 0).confidence_interval()
    cost = arm.cost_of_full["flops"]
    assert (cost.value, cost.low, cost.high) == pytest.approx((math.exp(sum(logs) / 6), math.exp(low), math.exp(high)))
    assert arm.cost_of_full["energy_kwh"].why == "not measured"
    own, full = ({r.block: r for r in runs() if r.arm == name} for name in (PARTIAL, "full"))
    del full[3]
    assert cost_ratio(own, full, "flops").why == "no run to compare with in every block"
    most, least = ({0: make_record(gamma={"energy_kwh": cost})} for cost in (1e100, 1e-300))
    assert cost_ratio(most, least, "energy_kwh").why == "cost_not_finite"  # the ratio has no number


def test_identical_blocks_have_a_value_and_no_interval() -> None:
    arm = arms_of(make_blocks({"head": [0.6] * 6, "full": [0.8] * 6, PARTIAL: [0.75] * 6}))[PARTIAL]
    for estimate in (arm.gain, arm.retained_gain, arm.against_full, arm.cost_of_full["device_hours"]):
        assert estimate.value is not None
        assert (estimate.low, estimate.why) == (None, ZERO_VARIANCE)


# --- what has no number -----------------------------------------------------------------------------


def test_where_fulls_gain_may_be_zero_nothing_is_a_share_or_a_multiple_of_it() -> None:
    unsure = (0.20, -0.10, 0.15, -0.05, 0.10, 0.05)  # above zero on the mean
    arms = arms_of(runs(full=unsure))
    assert arms["full"].gain.value is not None and arms["full"].gain.value > 0 > (arms["full"].gain.low or 0)
    for name in (PARTIAL, "head"):
        assert arms[name].retained_gain.value is None
        assert arms[name].retained_gain.why == "n/e: full_gain_not_positive"
    assert arms[PARTIAL].multiple_of_full["flops"].value is None
    assert arms[PARTIAL].multiple_of_full["flops"].why == "n/e: full_gain_not_positive"
    assert arms[PARTIAL].floor == "n/e: full_gain_not_positive"
    assert arms_of(runs(full=unsure, blocks=1))[PARTIAL].retained_gain.value is not None  # a point tells no interval
    better = arms_of(runs(gains=[g + 0.05 + 0.001 * i for i, g in enumerate(unsure)], full=unsure))[PARTIAL]
    assert better.against_full.low is not None and better.against_full.low > 0
    assert (
        better.quadrant["flops"] == "indistinguishable: below the capability floor"
    )  # better and cheaper than what may be nothing


def test_an_arm_that_surely_gains_where_full_loses_is_better_than_full_and_not_below_a_floor() -> None:
    losing = (-0.05, -0.04, -0.06, -0.05, -0.05, -0.04)
    arm = arms_of(runs(gains=BETTER, full=losing))[PARTIAL]
    assert arm.floor == "n/e: full_gain_not_positive"
    assert arm.quadrant["flops"] == "dominates"


@pytest.mark.parametrize(("full", "read"), [((0.3, 0.01, 0.02, 0.3, 0.01, 0.3), False), (CLEARER, True)])
def test_costs_that_even_out_fulls_gains_do_not_make_them_sure(full: Sequence[float], read: bool) -> None:
    flops = {"head": [1] * 6, "full": [round(1e6 * g) for g in full], PARTIAL: [30_000] * 6}
    finals = {"head": HEAD, "full": [h + g for h, g in zip(HEAD, full, strict=True)], PARTIAL: [h + 0.2 for h in HEAD]}
    found = arms_of(make_blocks(finals, flops), answered if read else None)
    assert found[PARTIAL].multiple_of_full["flops"].why == "n/e: full_gain_not_positive"
    if read:  # by blocks alone it would be above zero
        assert arms_of(make_blocks(finals, flops))[PARTIAL].multiple_of_full["flops"].value is not None


def test_items_alone_may_leave_fulls_gain_without_a_sign() -> None:
    records = runs(gains=(0.02,) * 6, full=(0.020, 0.021, 0.020, 0.019, 0.020, 0.020))
    rows = {"head": 60, "full": 62, PARTIAL: 62}

    def predictions(record: RunRecord, when: str) -> list[dict[str, Any]]:
        return make_predictions(rows[record.arm], draw=rows[record.arm])

    assert arms_of(records)[PARTIAL].retained_gain.value is not None
    found = arms_of(records, predictions)[PARTIAL].retained_gain
    assert (found.value, found.why) == (None, "n/e: full_gain_not_positive")


def test_a_full_gain_next_to_nothing_gives_no_infinite_share() -> None:
    records = make_blocks({"full": [1e-320], "lora": [0.5]}, base=0.0, new_head_parameters=0, spec={"kind": "causal"})
    assert arms_of(records)["lora"].retained_gain.why == "n/e: full_gain_not_positive"


def test_gains_so_small_that_their_squares_are_nothing_have_a_ratio_without_an_interval() -> None:
    causal = {"base": 0.0, "new_head_parameters": 0, "spec": {"kind": "causal"}}
    tiny = {name: [1e-200 * g for g in gains] for name, gains in (("full", FULL_GAINS), (PARTIAL, GAINS))}
    found = arms_of(make_blocks(tiny, **causal))[PARTIAL]
    assert found.retained_gain.value == pytest.approx(sum(GAINS) / sum(FULL_GAINS))
    for estimate in (found.retained_gain, found.gain, found.against_full):  # and no interval of no width
        assert (estimate.low, estimate.why) == (None, ZERO_VARIANCE)
    against = {"full": [1e-170 * g for g in FULL_GAINS], PARTIAL: [1e-20 * (0.37 - g) for g in FULL_GAINS]}
    share = arms_of(make_blocks(against, **causal))[PARTIAL].retained_gain  # full's mean squares to nothing
    assert share.value == pytest.approx(0.85e150)


def test_a_gain_that_is_not_positive_is_a_negative_share_and_no_multiple() -> None:
    arm = arms_of(runs(gains=(-0.05, -0.04, -0.06, -0.05, -0.03, -0.05)))[PARTIAL]
    assert arm.retained_gain.value is not None and arm.retained_gain.value < 0
    assert arm.retained_gain.high is not None and arm.retained_gain.high < 0
    assert {name: e.why for name, e in arm.multiple_of_full.items()}["flops"] == "n/e: gain_not_positive"
    assert arm.multiple_of_full["flops"].value is None


# --- the capability floor and quadrants -------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "floor"),
    [
        (GAINS, None),
        ((0.09, 0.10, 0.08, 0.09, 0.10, 0.08), "keeps less than 50 % of full's gain"),
        ((0.45, -0.20, 0.30, -0.10, 0.40, -0.10), "its gain is within two standard errors of 0"),
    ],
)
def test_an_arm_is_above_the_floor_with_half_of_fulls_gain_that_is_surely_one(
    gains: Sequence[float], floor: str | None
) -> None:
    arm = arms_of(runs(gains=gains))[PARTIAL]
    assert arm.floor == floor
    assert arm.multiple_of_full["flops"].value is not None  # shown beside the retained gain, for pages to mark


BETTER = (0.24, 0.27, 0.23, 0.25, 0.25, 0.22)
UNSURE = (0.22, 0.19, 0.21, 0.20, 0.19, 0.19)


@pytest.mark.parametrize(
    ("gains", "scale", "expected"),
    [
        (BETTER, 0.5, "dominates"),
        (GAINS, 2.0, "dominated"),
        (BETTER, 2.0, "trade-off"),
        (GAINS, 0.5, "trade-off"),
        (UNSURE, 0.5, "indistinguishable: psi not told apart"),
    ],
)
def test_an_arm_has_a_quadrant_against_full_by_both_intervals(
    gains: Sequence[float], scale: float, expected: str
) -> None:
    records = runs(gains=gains)
    flops = {(r.arm, r.block): r.gamma.flops for r in records}
    records = [
        r.model_copy(update={"gamma": r.gamma.model_copy(update={"flops": int(scale * flops["full", r.block] + i)})})
        if r.arm == PARTIAL
        else r
        for i, r in enumerate(records)
    ]
    assert arms_of(records)[PARTIAL].quadrant["flops"] == expected
    assert arms_of(records)[PARTIAL].quadrant["energy_kwh"] == "cost: not measured"


# --- the error of the items -------------------------------------------------------------------------


def answered(record: RunRecord, when: str) -> list[dict[str, Any]]:
    right = (record.psi.final or {})["accuracy"] if when == "final" else 0.5
    return make_predictions(round(100 * right), draw=record.block)


def test_items_widen_every_interval_of_a_gain_and_move_no_value() -> None:
    plain, wide = arms_of(runs()), arms_of(runs(), answered)
    for name in ("gain", "retained_gain", "against_full"):
        a, b = getattr(plain[PARTIAL], name), getattr(wide[PARTIAL], name)
        assert b.value == pytest.approx(a.value)
        assert b.low < a.low and b.high > a.high
    assert wide[PARTIAL].multiple_of_full["flops"].se > plain[PARTIAL].multiple_of_full["flops"].se  # type: ignore[operator]
    assert wide[PARTIAL].gain.no_items is None


def test_items_of_a_model_without_a_new_head_are_paired_with_those_of_its_base() -> None:
    causal = {"new_head_parameters": 0, "spec": {"kind": "causal"}}
    records = make_blocks({"full": [0.5 + g for g in FULL_GAINS], "lora": [0.5 + g for g in GAINS]}, **causal)
    asked = []

    def predictions(record: RunRecord, when: str) -> list[dict[str, Any]]:
        asked.append(when)
        return answered(record, when)

    assert arms_of(records, predictions)["lora"].gain.no_items is None
    assert set(asked) == {"base", "final"}


def test_without_its_predictions_an_interval_says_that_it_is_of_blocks_alone() -> None:
    evidence = make_evidence(*runs())
    arm = arms_of(runs(), evidence.predictions)[PARTIAL]
    assert arm.gain.no_items == "no predictions are stored"
    alone = arms_of(runs())[PARTIAL]
    for found, plain in ((arm.gain, alone.gain), (arm.retained_gain, alone.retained_gain)):
        assert found == replace(plain, no_items="no predictions are stored") and plain.no_items is None
    others: Callable[[RunRecord, str], Any] = lambda r, when: [  # noqa: E731
        row | {"id": f"{row['id']} {r.block}"} for row in make_predictions(50)
    ]
    assert arms_of(runs(), others)[PARTIAL].gain.no_items == "the runs were not scored on the same items"
    fewer: Callable[[RunRecord, str], Any] = lambda r, when: make_predictions(1, 1)  # noqa: E731
    assert arms_of(runs(), fewer)[PARTIAL].gain.no_items == "1 predictions are stored, of 100 items"


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "nll", "bits_per_byte", "another"])
@pytest.mark.parametrize(
    "row",
    [
        {},
        {"id": 7, "prediction": [1], "reference": {"a": 1}, "scores": None},
        {"id": "a", "prediction": "a", "reference": 1, "scores": {}},
        {"id": "a", "prediction": None, "reference": None, "scores": {"nll": math.nan, "bytes": 0, "another": 1e308}},
        {"id": "a", "prediction": "a", "reference": "a", "scores": {"nll": 1.0, "bytes": 0, "another": 10**400}},
        {"id": "a", "prediction": "a", "reference": "a", "scores": {"nll": 1e308, "bytes": 1e308, "another": True}},
        {"id": "a", "prediction": "a", "reference": "a", "scores": [1, 2]},
    ],
)
def test_garbage_for_predictions_is_a_reason_and_never_a_crash(metric: str, row: Mapping[str, Any]) -> None:
    records = [
        r.model_copy(update={"psi": r.psi.model_copy(update={"primary": metric, "final": {metric: 0.5 + r.block}})})
        for r in runs()
    ]
    rows = [dict(row, **({"id": f"{i}"} if "id" in row else {})) for i in range(3)]
    (group,) = compare(records, lambda record, when: rows)
    for arm in group.arms:
        assert arm.gain.no_items is None or arm.gain.no_items
        for estimate in (arm.gain, arm.against_full):
            assert estimate.low is None or math.isfinite(estimate.low)
    assert render_report(records)


def test_a_comparison_gives_the_same_intervals_in_whatever_order_runs_come() -> None:
    assert compare(runs()[::-1], answered) == compare(runs(), answered)
