"""The stop rule: DeltaPsi / DeltaGamma over a moving window stays below eta for P successive checks (paper 3)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.adapt.stopping import StopRule, replay
from cprbench.errors import SpecError, TrainingError
from cprbench.spec import falls

#: Rises by 4, 4, 2, 1, 0.2, 0.1, 0.1, … for one unit each.
SLOWING = [0.0, 4.0, 8.0, 10.0, 11.0, 11.2, 11.3, 11.4, 11.5, 11.6]


def fed(rule: StopRule, psis: Sequence[float | None], step: float = 1.0) -> list[bool]:
    return [rule.add(psi, step * number) for number, psi in enumerate(psis)]


def stop(psis: Sequence[float | None], **settings: object) -> int | None:
    rule = StopRule(**settings)  # type: ignore[arg-type]
    fed(rule, psis)
    return rule.stopped_at


def test_it_stops_at_the_first_check_that_ends_a_row_of_low_ratios_worked_by_hand() -> None:
    # Windows of 2: 4, 3, 1.5, 0.6, 0.15, 0.1, …; below 0.4 from check 7 on, the second time in a row at check 8.
    rule = StopRule("0.1x", window=2, patience=2)
    assert fed(rule, SLOWING) == [False] * 7 + [True] * 3
    assert rule.stopped_at == 8
    assert rule.largest == 4.0
    assert [point.ratio for point in rule.points[:6]] == pytest.approx([None, None, 4.0, 3.0, 1.5, 0.6])


def test_an_absolute_eta_is_in_psi_per_unit_of_the_resource() -> None:
    assert stop(SLOWING, eta="0.4", window=2) == stop(SLOWING, eta=0.4, window=2) == 8
    assert stop(SLOWING, eta=0.7, window=2) == 7
    assert stop(SLOWING, eta=0, window=2) is None
    assert stop([0.0, 1.0, 1.0, 1.0], eta=0, window=1) is None  # not below 0
    assert stop([0.0, 1.0, 0.9, 0.8], eta=0, window=1) == 4


def test_window_and_patience_each_delay_the_stop() -> None:
    assert stop(SLOWING, eta=1.2, window=1, patience=1) == 5
    assert stop(SLOWING, eta=1.2, window=3, patience=1) == 6
    assert stop(SLOWING, eta=1.2, window=1, patience=3) == 7


def test_one_good_check_begins_patience_anew() -> None:
    assert stop([0.0, 1, 2, 2, 3, 3, 4, 4, 5, 5], eta=0.5, window=1, patience=2) is None
    assert stop([0.0, 1, 2, 2, 2, 3], eta=0.5, window=1, patience=2) == 5


def test_the_mean_over_a_window_is_weighted_by_what_was_spent() -> None:
    rule = StopRule(eta=0.35, window=2, patience=1)
    for psi, gamma in ((0.0, 0.0), (1.0, 1.0), (1.0, 3.0)):  # ratios 1 and 0: plain mean 0.5, per unit spent 1/3
        rule.add(psi, gamma)
    assert rule.ratio == pytest.approx(1 / 3)
    assert rule.stopped_at == 3


def test_a_share_has_no_scale_before_any_window_gained() -> None:
    rule = StopRule("0.1x", window=1, patience=1)
    assert not any(fed(rule, [1.0, 0.9, 0.8, 0.8]))
    assert rule.threshold is None
    assert "no scale" in rule.why
    assert rule.add(1.0, 5.0) is False and rule.add(0.9, 6.0) is True


@pytest.mark.parametrize("missing", [(None, 2.5), (8.0, None), (None, None), (99.0, 2.0)])
def test_a_check_without_a_number_or_without_spending_is_skipped(missing: tuple[float | None, float | None]) -> None:
    rule = StopRule("0.1x", window=2)
    for number, psi in enumerate(SLOWING):
        rule.add(psi, number)
        if number == 2:
            rule.add(*missing)
    assert rule.stopped_at == 9  # one call later, at the same point
    assert [point.psi for point in rule.points] == SLOWING
    assert sum(rule.told()["skipped"].values()) == 1


def test_it_goes_on_saying_stop_after_a_skipped_check() -> None:
    rule = StopRule("0.1x", window=2)
    fed(rule, SLOWING)
    assert rule.add(None, None) is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(TrainingError, match=r"check 1: psi is .*None"):
        StopRule().add(bad, 1.0)
    with pytest.raises(TrainingError, match="check 1: flops is"):
        StopRule().add(1.0, bad)


def test_a_ratio_too_large_for_a_number_is_refused() -> None:
    rule = StopRule(window=1)
    rule.add(0.0, 0.0)
    with pytest.raises(TrainingError, match="DeltaPsi/DeltaGamma is inf"):
        rule.add(1.0, 5e-324)


def test_a_resource_that_falls_is_refused_with_the_check() -> None:
    rule = StopRule(resource="seconds")
    rule.add(0.0, 2.0)
    with pytest.raises(TrainingError, match=r"check 2: seconds fell from 2 to 1\..* running total"):
        rule.add(0.1, 1.0)
    with pytest.raises(TrainingError, match="fell from 0 to -1"):
        StopRule().add(0.1, -1.0)


@pytest.mark.parametrize(
    "eta",
    ["", "x", "-0.1x", "0x", "1x", "2x", "nan", "inf", "-1", "0.1 y", "1_0", "0.1_0x", True, math.nan, -1e-9, None],
)
def test_an_eta_that_means_nothing_is_refused(eta: str | float) -> None:
    with pytest.raises(SpecError, match=r"stop\.eta is .*0\.1x"):
        StopRule(eta)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_window_and_patience_count_checks(value: int) -> None:
    with pytest.raises(SpecError, match=r"stop\.window is"):
        StopRule(window=value)
    with pytest.raises(SpecError, match=r"stop\.patience is"):
        StopRule(patience=value)


def test_what_it_tells_is_json_and_says_why_in_every_state() -> None:
    rule = StopRule("0.1x", window=2, resource="device_hours")
    assert "none of 0 checks" in rule.told()["why"]
    fed(rule, SLOWING[:3])
    assert "3 checks counted, and it needs 4 at least" in rule.told()["why"]
    fed(rule := StopRule("0.1x", window=2, resource="device_hours"), SLOWING[:6])
    assert rule.told()["why"].startswith("never fired: psi gained per device_hours")
    fed(rule := StopRule("0.1x", window=2), [*SLOWING, None])
    told = json.loads(json.dumps(rule.told(), allow_nan=False))
    assert (told["eta"], told["window"], told["patience"], told["resource"]) == ("0.1x", 2, 2, "flops")
    assert (told["checks"], told["stopped_at"], told["largest"]) == (11, 8, 4.0)
    assert told["skipped"] == {"not measured": 1}
    assert told["why"].startswith("check 8: ") and "eta = 0.1x" in told["why"]


def test_a_replay_says_what_was_saved_and_lost() -> None:
    found = replay(((psi, 2.0 * number) for number, psi in enumerate(SLOWING)), StopRule("0.1x", window=2))
    assert (found["stopped_at"], found["gamma"], found["psi"]) == (8, 14.0, 11.4)
    assert found["saved"] == pytest.approx(1 - 14 / 18)
    assert found["lost"] == pytest.approx(0.2)
    assert found["lost_share"] == pytest.approx(0.2 / 11.6)


def test_a_replay_that_never_stops_saves_and_loses_nothing() -> None:
    found = replay(((psi, number) for number, psi in enumerate(SLOWING)), StopRule(0, window=2))
    assert (found["stopped_at"], found["gamma"], found["saved"], found["lost"]) == (None, 9.0, 0.0, 0.0)


def test_a_share_of_a_gain_that_is_none_is_answered_with_a_reason() -> None:
    found = replay([(1.0, 0.0), (0.9, 1.0), (1.0, 2.0)], StopRule(1.0, window=1, patience=1))
    assert found["lost"] == pytest.approx(0.1)
    assert found["lost_share"] is None
    assert "did not rise" in found["lost_share_why"]


def test_a_curve_without_one_whole_point_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"none of 3 checks had both psi and flops: there is no curve"):
        replay([(None, 1.0), (0.5, None), (None, None)], StopRule())


@pytest.mark.parametrize(
    ("metric", "lower_is_better"),
    [("nll", True), ("eval_loss", True), ("bits_per_byte", True), ("perplexity", True), ("accuracy", False),
     ("lossless", False), ("gloss", False)],
)  # fmt: skip
def test_scores_that_fall_are_known_by_name(metric: str, lower_is_better: bool) -> None:
    assert falls(metric) is lower_is_better


curves = st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 8)), min_size=1, max_size=30)


@given(curves, st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 4), st.integers(1, 3))
def test_a_relative_eta_does_not_depend_on_the_units(
    steps: list[tuple[int, int]], psi_unit: int, gamma_unit: int, window: int, patience: int
) -> None:
    plain, scaled = (StopRule("0.125x", window, patience) for _ in range(2))
    psi = gamma = 0
    for rise, spent in steps:
        psi, gamma = psi + rise, gamma + spent
        # Powers of two: exact, so that equal means equal.
        assert plain.add(psi, gamma) == scaled.add(psi * 2.0**psi_unit, gamma * 2.0**gamma_unit)


@given(curves, st.integers(1, 4), st.integers(1, 3), st.floats(0, 3))
def test_it_stops_where_the_definition_says(
    steps: list[tuple[int, int]], window: int, patience: int, eta: float
) -> None:
    points, psi, gamma = [], 0, 0
    for rise, spent in steps:
        psi, gamma = psi + rise, gamma + spent
        points.append((psi, gamma))
    low = [
        i >= window and (points[i][0] - points[i - window][0]) / (points[i][1] - points[i - window][1]) < eta
        for i in range(len(points))
    ]
    wanted = next((i + 1 for i in range(len(low)) if i + 1 >= patience and all(low[i + 1 - patience : i + 1])), None)
    rule = StopRule(eta, window, patience)
    for point in points:
        rule.add(*point)
    assert rule.stopped_at == wanted
