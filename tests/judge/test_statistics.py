"""Estimates against scipy's t tests, Fieller's interval worked out by hand, and what has to be refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cprbench.judge.statistics import (
    DENOMINATOR,
    TOO_FEW,
    ZERO_VARIANCE,
    Estimate,
    cost_ratio,
    holm,
    mean_difference,
    ratio_of_means,
    sign_flip_p,
)

OURS, FULL = [0.12, 0.18, 0.11, 0.16, 0.14, 0.13], [0.20, 0.21, 0.17, 0.20, 0.19, 0.16]
DIFFERENCES = [a - b for a, b in zip(OURS, FULL, strict=True)]
values = st.floats(0.01, 100, allow_nan=False).map(lambda value: round(value, 3))


def interval(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_a_mean_difference_is_the_paired_t_test() -> None:
    found, expected = mean_difference(DIFFERENCES), stats.ttest_rel(OURS, FULL)
    assert interval(found) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_above(0) == pytest.approx(stats.ttest_rel(OURS, FULL, alternative="greater").pvalue)
    assert found.p_below(-0.03) == pytest.approx(stats.ttest_1samp(DIFFERENCES, -0.03, alternative="less").pvalue)
    assert (found.value, found.n, found.why) == (pytest.approx(sum(DIFFERENCES) / 6), 6, None)


def test_the_variance_of_items_is_added_to_that_of_blocks_and_moves_no_degree_of_freedom() -> None:
    plain, wide = mean_difference(DIFFERENCES), mean_difference(DIFFERENCES, item_variance=0.0004)
    assert plain.se is not None
    assert wide.se == pytest.approx(math.sqrt(plain.se**2 + 0.0004))
    assert interval(wide)[1] - interval(wide)[0] == pytest.approx(
        2 * stats.t.ppf(0.975, 5) * math.hypot(plain.se, 0.02)
    )
    assert plain.p is not None
    assert wide.p is not None
    assert wide.p > plain.p


def test_fieller_worked_out_by_hand() -> None:
    # Means 2 and 5; sample variances and covariance 1, so each over three blocks is 1/3; t^2 = 18.5128 at 2 degrees.
    # Roots of (25 - 6.1709) r^2 - 2 (10 - 6.1709) r + (4 - 6.1709) = 0.
    found = ratio_of_means([1, 2, 3], [4, 5, 6])
    assert found.value == pytest.approx(0.4)
    assert interval(found) == pytest.approx((-0.19243, 0.59915), abs=1e-5)
    assert found.se == pytest.approx(math.sqrt((1 - 2 * 0.4 + 0.16) / 3) / 5)


def test_a_threshold_at_the_edge_of_fiellers_interval_has_the_p_of_the_interval() -> None:
    found = ratio_of_means(OURS, FULL)
    low, high = interval(found)
    assert stats.ttest_rel(OURS, [low * x for x in FULL]).pvalue == pytest.approx(0.05)
    assert (found.p_above(low), found.p_below(high)) == pytest.approx((0.025, 0.025))
    assert found.p_above(0.6) == pytest.approx(
        stats.ttest_rel(OURS, [0.6 * x for x in FULL], alternative="greater").pvalue
    )
    assert found.p == pytest.approx(stats.ttest_rel(OURS, FULL).pvalue)  # of a ratio: against 1


def test_the_covariance_of_items_enters_a_ratio() -> None:
    plain = ratio_of_means(OURS, FULL)
    apart = ratio_of_means(OURS, FULL, ((1e-4, 0.0), (0.0, 1e-4)))
    together = ratio_of_means(OURS, FULL, ((1e-4, 1e-4), (1e-4, 1e-4)))
    widths = [interval(e)[1] - interval(e)[0] for e in (plain, together, apart)]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] * 0.99 < widths[2] * 0.98
    with pytest.raises(ValueError, match="covariance"):
        ratio_of_means(OURS, FULL, ((-1e-4, 0.0), (0.0, 1e-4)))


def test_a_denominator_that_may_be_zero_has_no_ratio() -> None:
    for denominators in ([0.2, -0.1, 0.05], [-0.2, -0.21, -0.19], [0.0, 0.0, 0.0]):
        found = ratio_of_means([0.1, 0.2, 0.3], denominators)
        assert (found.value, found.low, found.why) == (None, None, DENOMINATOR)
    steady = [0.2, 0.2, 0.21]
    assert ratio_of_means([0.1, 0.2, 0.3], steady).value is not None
    assert ratio_of_means([0.1, 0.2, 0.3], steady, ((0.0, 0.0), (0.0, 0.01))).why == DENOMINATOR


def test_a_cost_ratio_is_a_t_test_of_logarithms() -> None:
    found = cost_ratio([1.0, 2.2, 3.1], [2.0, 4.1, 6.5])
    logs = [math.log(a / b) for a, b in ((1.0, 2.0), (2.2, 4.1), (3.1, 6.5))]
    expected = stats.ttest_1samp(logs, 0)
    assert found.value == pytest.approx(math.exp(sum(logs) / 3))
    assert interval(found) == pytest.approx(tuple(math.exp(x) for x in expected.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_below(0.6) == pytest.approx(stats.ttest_1samp(logs, math.log(0.6), alternative="less").pvalue)
    assert found.p_above(0.0) == 0.0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_cost_that_is_zero_or_infinite_has_no_ratio(bad: float) -> None:
    for pair in (([1.0, bad, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0, bad, 2.0])):
        found = cost_ratio(*pair)
        assert (found.value, found.low) == (None, None)
        assert found.why == ("cost_not_positive" if math.isfinite(bad) else "cost_not_finite")


def test_counted_costs_that_agree_in_all_blocks_are_a_point_and_measured_ones_have_no_interval() -> None:
    counted, measured = (cost_ratio([1, 2, 3], [2, 4, 6], counted=c) for c in (True, False))
    assert interval(counted) == (0.5, 0.5)
    assert (counted.p_below(1.0), counted.p_below(0.5), counted.p_above(0.4)) == (0.0, 0.5, 0.0)
    assert (measured.value, measured.low, measured.why) == (0.5, None, ZERO_VARIANCE)
    assert cost_ratio([1, 2.1], [2, 4], counted=True).low is None


@pytest.mark.parametrize("item_variance", [0.0, 0.0001])
def test_blocks_that_repeat_one_another_are_never_certain(item_variance: float) -> None:
    for differences in ([0.1] * 6, [0.0] * 6, [0.1, 0.1 + 1e-16, 0.1]):
        found = mean_difference(differences, item_variance)
        assert (found.value, found.low, found.p) == (pytest.approx(differences[0]), None, None)
        assert found.why == ZERO_VARIANCE
        assert found.p_above(0) is None
    same = ratio_of_means(FULL, FULL, ((item_variance, item_variance), (item_variance, item_variance)))
    assert (same.value, same.low, same.why) == (1, None, ZERO_VARIANCE)


def test_one_and_two_blocks_are_points() -> None:
    for n in (1, 2):
        for found in (
            mean_difference(OURS[:n], 0.1),
            ratio_of_means(OURS[:n], FULL[:n]),
            cost_ratio(OURS[:n], FULL[:n]),
        ):
            assert found.value is not None
            assert (found.low, found.high, found.p, found.p_above(0.0), found.why) == (None, None, None, None, TOO_FEW)
    assert mean_difference([]).why == "no blocks"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_averaged(bad: float) -> None:
    assert mean_difference([0.1, bad, 0.2]) == Estimate(None, why="not_finite", n=3)
    assert ratio_of_means([0.1, 0.2, 0.3], [0.1, bad, 0.2]).why == "not_finite"
    with pytest.raises(ValueError, match="item covariance"):
        mean_difference(DIFFERENCES, bad)


def test_sign_flip_p_is_exact_and_cannot_be_small_for_few_blocks() -> None:
    assert [sign_flip_p([0.1] * n) for n in (1, 3, 5, 6)] == [1.0, 0.25, 0.0625, 0.03125]
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip_p([3.0, 2.0, -1.0]) == 0.5  # |4| or more: 6, 4 and their mirrors, of eight
    expected = stats.permutation_test(
        (DIFFERENCES, [0.0] * 6), lambda a, b: sum(a) - sum(b), permutation_type="samples", n_resamples=math.inf
    )
    assert sign_flip_p(DIFFERENCES) == pytest.approx(expected.pvalue)
    assert mean_difference(DIFFERENCES).sign_flip_p == sign_flip_p(DIFFERENCES)
    assert sign_flip_p([0.1] * 20) == 2 / 2**20
    assert sign_flip_p([]) is sign_flip_p([0.1] * 21) is None


def test_holm_steps_down_and_never_reverses_an_order() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"only": 0.04}) == {"only": 0.04}
    assert holm({"x": 0.6, "untested": 1.0}) == {"x": 1.0, "untested": 1.0}
    assert holm({}) == {}
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="p-values"):
            holm({"x": wrong})


@given(st.lists(st.tuples(values, values), min_size=3, max_size=8), st.randoms())
def test_the_order_of_blocks_changes_no_digit(pairs: list[tuple[float, float]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_difference([a - b for a, b in pairs]) == mean_difference([a - b for a, b in shuffled])
    for ratio in (cost_ratio, ratio_of_means):
        assert ratio(*zip(*pairs, strict=True)) == ratio(*zip(*shuffled, strict=True))


@given(st.lists(st.tuples(values, values), min_size=3, max_size=8), st.sampled_from([1e-9, 3600.0, 1e15]))
def test_ratios_have_no_unit(pairs: list[tuple[float, float]], unit: float) -> None:
    ours, others = [a for a, _ in pairs], [b for _, b in pairs]
    for ratio in (ratio_of_means, cost_ratio):
        plain, scaled = ratio(ours, others), ratio([unit * a for a in ours], [unit * b for b in others])
        assert plain.why == scaled.why
        for name in ("value", "low", "high", "p"):
            before, after = getattr(plain, name), getattr(scaled, name)
            assert (before is None) == (after is None)
            assert after is None or after == pytest.approx(before, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(values, values), min_size=3, max_size=8))
def test_an_interval_holds_its_value(pairs: list[tuple[float, float]]) -> None:
    for found in (ratio_of_means(*zip(*pairs, strict=True)), cost_ratio(*zip(*pairs, strict=True))):
        if found.low is not None:
            assert found.value is not None
            assert interval(found)[0] < found.value < interval(found)[1]
