"""Fits over arms against curves that are what they claim to be."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from cprbench.blueprint.concentration import best_share
from cprbench.judge.scaling import additive_vs_product, line_fit, power_fit, predicted_best
from cprbench.judge.statistics import TOO_FEW, ZERO_VARIANCE

SHARES = [0.05, 0.1, 0.3, 1.0]


def test_a_power_law_gives_its_exponent_back_block_by_block() -> None:
    exponents = {0: 0.4, 1: 0.5, 2: 0.45}
    gains = {block: [0.2 * (1 + block) * k**g for k in SHARES] for block, g in exponents.items()}
    found = power_fit(SHARES, gains)
    expected = stats.ttest_1samp(list(exponents.values()), 0).confidence_interval()
    assert found.slope.value == pytest.approx(0.45)
    assert (found.slope.low, found.slope.high) == pytest.approx(tuple(expected))
    assert math.exp(found.intercept.value or 0) == pytest.approx(0.2 * 6 ** (1 / 3))
    assert found.r_squared == pytest.approx(1.0)


def test_scatter_around_the_curve_is_in_r_squared() -> None:
    line = stats.linregress([math.log(k) for k in SHARES], [math.log(g) for g in (0.1, 0.11, 0.2, 0.19)])
    found = power_fit(SHARES, {0: [0.1, 0.11, 0.2, 0.19]})
    assert (found.slope.value, found.r_squared) == pytest.approx((line.slope, line.rvalue**2))
    assert (found.slope.low, found.slope.why) == (None, TOO_FEW)
    assert power_fit([0.1, 1.0], {0: [0.1, 0.2]}).r_squared is None  # any line fits two points


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan])
def test_a_gain_that_is_not_positive_is_never_left_out(bad: float) -> None:
    found = power_fit(SHARES, {0: [0.1, 0.12, 0.15, 0.2], 1: [bad, 0.1, 0.2, 0.2]})
    assert found.slope.value is None
    assert str(found.slope.why).startswith("gain_not_positive")
    assert str(found.slope.why).endswith("at share 0.05 in block 1")


def test_what_cannot_be_fitted_says_why() -> None:
    assert power_fit([0.1, 0.1], {0: [1, 2]}).slope.why == "fewer than two different shares"
    assert power_fit([0.0, 0.1], {0: [1, 2]}).slope.why == "a share outside (0, 1]"
    assert line_fit(SHARES, {}).slope.why == "no blocks"
    assert line_fit(SHARES, {0: [1, 2, math.inf, 3]}).slope.why == "a cost is not finite"
    with pytest.raises(ValueError, match="shorter"):
        line_fit(SHARES, {0: [1, 2, 3]})


def test_a_cost_line_gives_slope_intercept_and_their_intervals() -> None:
    costs = {block: [2 + 0.1 * block + (3 - 0.1 * block) * k for k in SHARES] for block in range(3)}
    found = line_fit(SHARES, costs)
    expected = stats.ttest_1samp([3, 2.9, 2.8], 0).confidence_interval()
    assert (found.slope.value, found.intercept.value) == pytest.approx((2.9, 2.1))
    assert (found.slope.low, found.slope.high) == pytest.approx(tuple(expected))
    assert found.intercept.low is not None
    assert found.r_squared == pytest.approx(1.0)
    assert line_fit(SHARES, {0: [1, 1, 1, 1]}).r_squared is None
    counted = line_fit(SHARES, {block: [2 + 3 * k for k in SHARES] for block in range(3)})
    assert (counted.slope.value, counted.slope.why) == (pytest.approx(3), ZERO_VARIANCE)


def test_the_best_share_is_the_papers_of_the_fitted_constants() -> None:
    costs = line_fit(SHARES, {0: [1 + 4 * k for k in SHARES]})
    assert predicted_best(power_fit(SHARES, {0: [k**0.6 for k in SHARES]}), costs).k == pytest.approx(0.375)
    steep = power_fit(SHARES, {0: [k**0.9 for k in SHARES]})
    assert predicted_best(steep, costs).why == best_share(0.9, 1, 4).why
    assert not predicted_best(steep, costs).holds
    falling = line_fit(SHARES, {0: [5 - 4 * k for k in SHARES]})
    assert "grow with k" in str(predicted_best(steep, falling).why)
    none = power_fit(SHARES, {0: [0.0, 1, 1, 1]})
    assert predicted_best(none, costs).why == none.slope.why
    assert predicted_best(steep, line_fit([0.1], {})).why == "fewer than two different shares"


GRID = [(k, q) for k in (0.1, 0.3, 1.0) for q in (0.25, 0.5, 1.0)]


def test_each_cost_model_predicts_the_cells_of_its_own_kind() -> None:
    additive = additive_vs_product({(k, q): 1e12 * (1 + 2 * k + 3 * q) for k, q in GRID})
    assert additive.additive == pytest.approx(0, abs=1e-9)
    assert (additive.product or 0) > 0.5
    product = additive_vs_product({(k, q): 5 * k * q for k, q in GRID})
    assert product.product == pytest.approx(0, abs=1e-9)
    assert (product.additive or 0) > 0.4
    assert product.cells == 9


def test_a_cell_is_predicted_from_the_others_and_not_from_itself() -> None:
    costs = {(k, q): 1 + 2 * k + 3 * q for k, q in GRID}
    costs[(1.0, 1.0)] *= 2
    found = additive_vs_product(costs).additive
    left_out = {cell: cost for cell, cost in costs.items() if cell != (1.0, 1.0)}
    assert additive_vs_product(left_out).additive == pytest.approx(0, abs=1e-9)
    # Predicted from the others, that cell is 6 of 12: off by half; every other cell is predicted with it in the fit.
    assert found is not None
    assert found > math.sqrt(0.5**2 / 9)


def test_too_few_or_wrong_cells_decide_nothing() -> None:
    assert additive_vs_product(dict.fromkeys(GRID[:4], 1.0)).why == "fewer than five cells"
    line = {(k, 1.0): 1 + k for k in (0.1, 0.2, 0.3, 0.5, 1.0)}
    assert "settle" in str(additive_vs_product(line).why)
    alone = line | {(1.0, 0.5): 1.0}  # the only cell at another q
    assert "settle" in str(additive_vs_product(alone).why)
    for wrong in (0.0, math.nan, -1.0):
        assert "positive cost" in str(additive_vs_product(dict.fromkeys(GRID, 1.0) | {(0.1, 0.25): wrong}).why)
