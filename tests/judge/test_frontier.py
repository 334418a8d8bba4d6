"""Quadrants, fronts and targets on points whose answers can be seen."""

from __future__ import annotations

import math

import pytest

from cprbench.judge.frontier import BELOW_FLOOR, cost_to_target, front, last_window_ratio, pareto, quadrant
from cprbench.judge.statistics import TOO_FEW, Estimate

BETTER, WORSE = Estimate(0.03, 0.01, 0.05), Estimate(-0.03, -0.05, -0.01)
UNSURE, CLOSE = Estimate(0.01, -0.03, 0.05), Estimate(-0.001, -0.006, 0.004)
CHEAP, DEAR = Estimate(0.5, 0.4, 0.6), Estimate(2.0, 1.5, 2.6)
NOISY, SAME = Estimate(1.1, 0.6, 2.0), Estimate(1.0, 0.98, 1.02)


@pytest.mark.parametrize(
    ("psi", "cost", "expected"),
    [
        (BETTER, CHEAP, "dominates"),
        (WORSE, DEAR, "dominated"),
        (BETTER, DEAR, "trade-off"),
        (WORSE, CHEAP, "trade-off"),
        (UNSURE, CHEAP, "indistinguishable"),  # not shown to be worse is not shown to be as good
        (BETTER, NOISY, "indistinguishable"),
        (CLOSE, CHEAP, "dominates"),  # within the margin of 0.01
        (CLOSE, DEAR, "dominated"),
        (BETTER, SAME, "dominates"),  # within 5 % of cost
        (WORSE, SAME, "dominated"),
        (CLOSE, SAME, "indistinguishable"),
    ],
)
def test_a_quadrant_is_read_off_two_intervals(psi: Estimate, cost: Estimate, expected: str) -> None:
    found = quadrant(psi, cost, above_floor=True, margin=0.01, cost_margin=0.05)
    assert found.value == expected
    assert (found.why is None) == (expected != "indistinguishable")


def test_without_a_margin_nothing_is_equal_and_the_unknown_axis_is_named() -> None:
    assert quadrant(CLOSE, CHEAP, above_floor=True).why == "psi not told apart"
    assert quadrant(BETTER, SAME, above_floor=True).why == "cost not told apart"
    assert quadrant(UNSURE, NOISY, above_floor=True).why == "psi and cost not told apart"


def test_without_an_interval_there_is_no_quadrant() -> None:
    none = Estimate(0.1, why=TOO_FEW)
    assert quadrant(none, CHEAP, above_floor=True).value is None
    assert quadrant(none, CHEAP, above_floor=True).why == f"psi: {TOO_FEW}"
    assert quadrant(BETTER, Estimate(None, why="cost_not_finite"), above_floor=True).why == "cost: cost_not_finite"


def test_an_arm_below_the_capability_floor_dominates_nothing() -> None:
    found = quadrant(CLOSE, CHEAP, above_floor=False, margin=0.01)
    assert (found.value, found.why) == ("indistinguishable", BELOW_FLOOR)
    assert quadrant(WORSE, DEAR, above_floor=False).value == "dominated"


def test_a_front_holds_what_nothing_beats() -> None:
    points = {"cheap": (1.0, 0.5), "good": (4.0, 0.9), "beaten": (4.0, 0.8), "dear": (5.0, 0.9), "twin": (1.0, 0.5)}
    assert pareto(points) == ("cheap", "good", "twin")
    lacking = {"free": (None, 1.0), "unscored": (0.1, None), "infinite": (math.inf, 2.0), "nan": (1.0, math.nan)}
    assert pareto(points | lacking) == ("cheap", "good", "twin")
    assert pareto({}) == ()


def test_how_often_an_arm_is_on_the_front_comes_from_blocks_drawn_for_all_arms_at_once() -> None:
    steady = {block: (1.0, 0.5) for block in range(6)}
    # Always a little better and dearer: on every front, unless each of the two drew blocks of its own.
    drifting = {block: (1.0 + block, 0.3 + block / 10) for block in range(6)}
    above = {block: (cost + 0.1, psi + 0.001) for block, (cost, psi) in drifting.items()}
    rival = {block: (0.9, 0.451 if block % 2 else 0.6) for block in range(6)}
    found = front({"drifting": drifting, "above": above}, {})
    assert found.frequency == {"drifting": 1.0, "above": 1.0}
    assert (found.arms, found.blocks, found.why) == (("drifting", "above"), tuple(range(6)), None)
    found = front({"steady": steady, "rival": rival}, {})
    # rival beats steady on the mean, 0.5255; not where more than 4 of 6 draws are odd blocks: (6 + 1) / 2^6
    assert found.arms == ("rival",)
    assert found.frequency["rival"] == 1.0
    assert found.frequency["steady"] == pytest.approx(7 / 64, abs=0.03)
    assert found == front({"steady": steady, "rival": rival}, {})
    assert (found.resamples, found.seed) == (2000, 0)


def test_a_run_of_one_step_and_a_run_without_a_cost_are_off_the_front_and_beat_nobody() -> None:
    arms = {
        "one step": dict.fromkeys(range(3), (1e-9, 0.9)),
        "unmeasured": {0: (1.0, 0.9), 1: (None, 0.9), 2: (1.0, 0.9)},
        "full": dict.fromkeys(range(3), (4.0, 0.8)),
        "short": {0: (9.0, 0.1), 1: (9.0, 0.1)},
    }
    found = front(arms, {"one step": BELOW_FLOOR})
    assert found.arms == ("full",)
    assert found.off == {"one step": BELOW_FLOOR, "unmeasured": "not measured in every block"}
    assert (found.blocks, found.frequency, found.why) == ((0, 1), {}, TOO_FEW)  # what all that remain have
    assert front(arms, dict.fromkeys(arms, BELOW_FLOOR)).why == "no arm that can be on it"
    assert front({"a": {0: (1.0, 1.0)}, "b": {1: (1.0, 1.0)}}, {}).why == "no block that all arms have"


def test_the_cost_to_a_target_is_that_of_the_first_point_that_reaches_it() -> None:
    curves = {
        0: [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (4.0, 0.8)],
        1: [(1.0, 0.5), (2.5, None), (3.0, 0.7)],
        2: [(1.0, 0.5), (2.0, 0.6)],
    }
    found = cost_to_target(curves, 0.7)
    assert found.by_block == {0: 2.0, 1: 3.0, 2: math.inf}
    assert (found.median, found.missed, found.why) == (3.0, 1, None)
    assert cost_to_target(curves, 0.75).median == math.inf  # one of three
    assert cost_to_target({0: curves[0], 2: curves[2]}, 0.7).median == math.inf  # one of two is no half and a bit


def test_a_target_reached_at_an_unknown_cost_has_none() -> None:
    found = cost_to_target({0: [(None, 0.9)], 1: [(1.0, 0.9)]}, 0.7)
    assert (found.median, found.why) == (None, "cost not measured in block 0")
    assert cost_to_target({0: [(1.0, None)]}, 0.7).why == "no validation psi in block 0"
    assert cost_to_target({}, 0.7).why == "no blocks"
    assert cost_to_target({0: [(None, 0.1), (2.0, 0.9)]}, 0.7).median == 2.0  # where it is not needed


def test_the_last_window_is_what_psi_rose_over_what_was_spent() -> None:
    curve = [(1.0, 0.1), (2.0, 0.5), (4.0, 0.6), (8.0, 0.7)]
    assert last_window_ratio(curve, 1).value == pytest.approx(0.1 / 4)
    assert last_window_ratio(curve, 2).value == pytest.approx(0.2 / 6)
    assert last_window_ratio([*curve, (None, 0.9), (9.0, None), (8.0, 0.9)], 2).value == pytest.approx(0.2 / 6)
    short = last_window_ratio(curve, 4)
    assert (short.value, short.why) == (None, "4 points with cost and psi, a window of 4 needs 5")
    with pytest.raises(ValueError, match="window"):
        last_window_ratio(curve, 0)


def test_an_arm_that_lacks_blocks_that_most_have_is_set_aside_and_the_rest_keep_their_blocks() -> None:
    arms = {
        "full": dict.fromkeys(range(3), (4.0, 0.8)),
        "lora": dict.fromkeys(range(4), (2.0, 0.7)),
        "lucky": {0: (1.0, 0.9)},
    }
    found = front(arms, {})
    assert found.off == {"lucky": "no run in block 1, 2"}
    assert (found.arms, found.blocks) == (("full", "lora"), (0, 1, 2))
    assert found.points == {"full": pytest.approx((4.0, 0.8)), "lora": pytest.approx((2.0, 0.7))}
