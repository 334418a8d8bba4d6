"""The paper's formulas at the paper's own examples, and the fits against data whose answer is known."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.blueprint import concentration as c
from cprbench.errors import SpecError

TOY = {"n": 10_000, "rank_exponent": 1.5}


def test_the_toy_example_holds_what_eq_7_gives_and_not_what_the_paper_prints() -> None:
    assert c.mass_share(0.1, **TOY) == pytest.approx(0.978, abs=5e-4)
    ranks = [r**-1.5 for r in range(1, 10_001)]
    assert sum(ranks[:1000]) / sum(ranks) == pytest.approx(0.983, abs=5e-4)
    assert c.mass_share(0.1, 10_000, 0.74) == pytest.approx(0.5, abs=0.05)  # where "nearly 50 %" belongs


def test_a_mass_share_runs_from_nothing_to_everything() -> None:
    assert c.mass_share(0, **TOY) == 0
    assert c.mass_share(1e-5, **TOY) == 0  # less than one element
    assert c.mass_share(1, **TOY) == 1
    with pytest.raises(ValueError, match="k in \\[0, 1\\]"):
        c.mass_share(1.1, **TOY)


def test_at_an_exponent_of_1_the_logarithms_take_over_without_a_step() -> None:
    limit = c.mass_share(0.1, 10_000, 1)
    assert limit == pytest.approx(math.log(1000) / math.log(10_000))
    for near in (1 - 1e-8, 1 + 1e-8, 1 - 1e-14, 1 + 1e-14):
        assert c.mass_share(0.1, 10_000, near) == pytest.approx(limit, rel=1e-6)


@given(st.floats(0.01, 3), st.floats(0.01, 1), st.floats(0.01, 1))
def test_more_elements_hold_more_mass_and_never_less_than_their_share(a: float, k: float, more: float) -> None:
    low, high = sorted((k, more))
    assert c.mass_share(low, 10_000, a) <= c.mass_share(high, 10_000, a) + 1e-12
    assert c.mass_share(k, 10_000, a) >= k - 1e-3


def test_a_steeper_line_has_the_smaller_mass_exponent() -> None:
    assert c.mass_exponent(1.5) == pytest.approx(0.4)
    assert c.mass_exponent(1.47) == pytest.approx(0.405, abs=5e-4)
    assert c.mass_exponent(1.12) == pytest.approx(0.472, abs=5e-4)


def test_the_example_of_b2_has_its_optimum_where_the_formula_says() -> None:
    best = c.best_share(0.6, 1, 4)
    assert best == c.Optimum(pytest.approx(0.375), holds=True)
    assert c.gain_per_cost(0.375, 0.6, 1, 4) == pytest.approx(0.2221, abs=5e-5)
    assert c.gain_per_cost(1, 0.6, 1, 4) == pytest.approx(0.2)


@given(st.floats(0.01, 0.99), st.floats(0.01, 10), st.floats(0.01, 10))
def test_no_other_share_beats_the_best_one(gamma: float, fixed: float, per: float) -> None:
    best = c.best_share(gamma, fixed, per)
    top = c.gain_per_cost(best.k or 1, gamma, fixed, per)
    assert best.k is None or 0 < best.k < 1
    assert best.holds is (best.k is not None)
    for k in (0.01, 0.1, 0.5, 0.9, 1):
        assert c.gain_per_cost(k, gamma, fixed, per) <= top * (1 + 1e-9)


@pytest.mark.parametrize("given_", [(0.6, 4, 1), (0.8, 1, 4), (1.0, 1, 4), (0.5, 1, 0)])
def test_where_eq_16_fails_everything_is_best_and_no_share_is_named(given_: tuple[float, float, float]) -> None:
    best = c.best_share(*given_)
    assert best.k is None and not best.holds
    assert best.why is not None and "k = 1 is best" in best.why


def test_an_optimum_at_nothing_is_no_share_either() -> None:
    for given_ in ((0.5, 0, 1), (0, 1, 1)):
        best = c.best_share(*given_)
        assert best.k is None and best.holds and "smallest k" in str(best.why)
    assert "cost is zero" in str(c.best_share(0.5, 0, 0).why)


def test_the_example_of_b5_keeps_0_164_which_is_2_73_times_its_product() -> None:
    assert c.predicted_retention(0.2, 0.3, 0.6, 0.7) == pytest.approx(0.164, abs=5e-4)
    assert c.predicted_multiple(0.2, 0.3, 0.6, 0.7) == pytest.approx(2.73, abs=5e-3)


@given(st.floats(0.02, 5), st.integers(3, 40))
def test_an_exact_power_curve_gives_its_exponent_back(g: float, n: int) -> None:
    exponent, r_squared = c.fit_exponent([(i / n, (i / n) ** g) for i in range(n + 1)])
    assert exponent == pytest.approx(g, rel=1e-4)
    assert r_squared is None or r_squared == pytest.approx(1)


def test_a_curve_of_another_shape_says_so_by_its_r_squared() -> None:
    step = [(i / 20, 0.0 if i < 15 else 1.0) for i in range(21)]
    assert (c.fit_exponent(step)[1] or 0) < c.POOR_FIT
    assert c.fit_exponent([(0, 0), (1, 1)]) == (None, None)
    assert c.fit_exponent([(0, 0), (0.5, 1), (0.7, 1), (1, 1)]) == (0, None)  # the first element holds everything


def test_the_shares_themselves_are_fitted_and_not_their_logarithms() -> None:
    curve = [(0, 0), (1e-6, 0.05), (0.25, 0.5), (0.5, math.sqrt(0.5)), (0.75, math.sqrt(0.75)), (1, 1)]
    assert c.fit_exponent(curve)[0] == pytest.approx(0.5, abs=0.01)  # by logarithms 0.24


def test_a_mass_curve_reads_at_ten_percent_what_was_put_there() -> None:
    values = np.concatenate([np.full(100, -9.0), np.ones(900)])
    curve = c.mass_curve(values)
    assert curve[0] == (0, 0) and curve[-1] == (1, 1) and len(curve) <= 200
    assert c.share_at(curve, 0.1) == pytest.approx(0.5)
    assert c.share_at(curve, 0.55) == pytest.approx((900 + 450) / 1800)
    assert c.mass_curve(np.zeros(5)) == [] and c.share_at([], 0.1) is None
    long = c.mass_curve(np.arange(1e5))
    assert len(long) <= 200 and {i / 20 for i in range(21)} <= {k for k, _ in long}


def test_a_histogram_gives_the_curve_of_its_values() -> None:
    curve = c.mass_curve_of_histogram([900, 0, 100], [900.0, 0.0, 900.0])
    assert curve == [(0, 0), (0.1, 0.5), (1, 1)]
    assert c.mass_curve_of_histogram([3], [0.0]) == []
    long = c.mass_curve_of_histogram([1] * 1000, [float(i) for i in range(1000)])
    assert len(long) <= 200 and long[0] == (0, 0) and long[-1] == (1, 1)


def test_a_pick_curve_takes_whole_submodules_in_their_order() -> None:
    norms, sizes = {"a": 1.0, "b": 3.0, "c": 0.0}, {"a": 50, "b": 30, "c": 20}
    curve = c.pick_curve(["b", "a", "c"], norms, sizes)
    assert curve == [(0, 0), (0.3, 0.9), (0.8, 1), (1, 1)]
    with pytest.raises(ValueError, match="every submodule once"):
        c.pick_curve(["b", "a"], norms, sizes)
    assert c.pick_curve(["a", "b", "c"], dict.fromkeys(norms, 0.0), sizes) == []


def test_the_pick_curve_of_the_deepest_model_still_fits_the_file() -> None:
    names = [f"ffn.{i}" for i in range(1001)]
    curve = c.pick_curve(names, dict.fromkeys(names, 1.0), dict.fromkeys(names, 7))
    assert len(curve) <= 200 and curve[0] == (0, 0) and curve[-1] == (1, 1)


def test_a_cost_line_is_found_and_counts_per_parameter() -> None:
    points = [(k, 2 + 8 * k) for k in (0.1, 0.4, 1.0)]
    assert c.fit_cost(points) == pytest.approx((2, 8, 1))
    assert c.fit_cost(points, parameters=100) == pytest.approx((0.02, 0.08, 1))
    whole, per = c.fit_cost(points), c.fit_cost(points, parameters=100)
    assert c.best_share(0.6, *whole[:2]).k == pytest.approx(c.best_share(0.6, *per[:2]).k)


def test_no_part_of_a_cost_is_ever_below_zero() -> None:
    assert c.fit_cost([(0.1, 5), (0.5, 4), (1, 3)])[:2] == (4, 0)
    fixed, per, _ = c.fit_cost([(0.1, 0.01), (0.5, 2), (1, 6)])
    assert fixed == 0 and per > 0
    assert c.fit_cost([(0.5, 1), (1, 2)]).r_squared is None
    with pytest.raises(SpecError, match="two different k"):
        c.fit_cost([(0.5, 1), (0.5, 2)])


def half_normal(n: int, seed: int) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(size=n))


@pytest.mark.parametrize("n", [1_000, 100_000])
def test_a_rank_size_line_gives_its_own_exponent_back(n: int) -> None:
    alpha, fit = c.fit_tail(np.arange(1, n + 1) ** -1.5, seed=1)
    assert alpha == pytest.approx(1.5, abs=0.02)
    assert fit.verdict == "heavy-tailed" and "above 1" in fit.why
    assert fit.density_exponent == pytest.approx(1 + 1 / alpha)
    assert fit.ks_distance is not None and fit.ks_distance < 0.01


def test_a_drawn_power_law_is_found_behind_a_body_that_is_none() -> None:
    generator = np.random.default_rng(3)
    values = np.concatenate([generator.uniform(0, 1, 30_000), 1 + generator.pareto(1.0, 30_000)])
    alpha, fit = c.fit_tail(values, seed=1)
    assert alpha == pytest.approx(1.0, abs=0.05)
    assert fit.verdict == "heavy-tailed" and fit.xmin is not None and 0.95 < fit.xmin < 4


@pytest.mark.parametrize("n", [50, 60, 100, 300, 1_000, 10_000, 150_000])
def test_a_half_normal_sample_is_not_called_heavy_tailed(n: int) -> None:
    for seed in range(20 if n < 10_000 else 2):
        _, fit = c.fit_tail(half_normal(n, seed), seed=1)
        assert fit.verdict != "heavy-tailed", seed
        assert n < 1000 or fit.verdict == "not heavy-tailed"


def test_a_lognormal_is_told_from_a_power_law() -> None:
    for seed in range(6):  # the last hundredth of some of these looks like a power law
        _, fit = c.fit_tail(np.exp(2 * np.random.default_rng(seed).normal(size=100_000)), seed=1)
        assert fit.verdict == "not heavy-tailed" and "lognormal" in fit.why
        assert fit.lognormal_likelihood_ratio is not None and fit.lognormal_likelihood_ratio < 0
        assert fit.tail_points >= 5_000


def test_an_exponent_beyond_the_bounds_of_powerlaw_is_not_cut_off() -> None:
    alpha, fit = c.fit_tail(1 + np.random.default_rng(5).pareto(5, size=5_000), seed=1)
    assert fit.density_exponent == pytest.approx(6, rel=0.15)  # powerlaw's own bounds would make it 3
    assert alpha is not None and fit.verdict == "not heavy-tailed"


def test_fewer_than_fifty_values_have_no_verdict_nor_have_equal_ones() -> None:
    few = np.arange(1, 50) ** -1.5
    for values, why in ((few, "49 values"), (np.ones(80), "equal"), (np.zeros(80), "0 values")):
        alpha, fit = c.fit_tail(values, seed=1)
        assert alpha is None and fit.verdict == "undecided" and why in fit.why
    alpha, fit = c.fit_tail(np.full(80, np.nan), seed=1)
    assert alpha is None and "80 values are not finite" in fit.why


def test_a_tail_fit_is_quick_silent_and_the_same_for_the_same_seed(capfd: pytest.CaptureFixture[str]) -> None:
    values = 1 + np.random.default_rng(0).pareto(0.8, size=300_000)
    c.fit_tail(values[:100], seed=1)  # the package's import is paid once
    start = time.perf_counter()
    first = c.fit_tail(values, seed=1)
    assert time.perf_counter() - start < 1
    assert first == c.fit_tail(values, seed=1) != c.fit_tail(values, seed=2)
    assert first[1].points == 300_000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_a_bootstrap_interval_holds_its_statistic_and_repeats_by_seed(statistic: str) -> None:
    values = np.random.default_rng(1).normal(10, 1, size=400)
    interval = c.bootstrap_ci(values, statistic, seed=7)  # type: ignore[arg-type]
    assert interval == c.bootstrap_ci(values, statistic, seed=7)  # type: ignore[arg-type]
    assert interval is not None and interval.low < 10.1 and interval.high > 9.9
    error = 1.96 / math.sqrt(400) * (1 if statistic == "mean" else math.sqrt(math.pi / 2))
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.25)


def test_a_bootstrap_takes_the_statistic_it_was_asked_for() -> None:
    skewed = [1.0] * 9 + [100.0]
    median, mean = (c.bootstrap_ci(skewed, s, seed=1) for s in ("median", "mean"))  # type: ignore[arg-type]
    assert median is not None and median.high == 1 and mean is not None and mean.high > 20
    assert c.bootstrap_ci([3.0], "mean", seed=1) is None
    many = c.bootstrap_ci(np.arange(10_000.0), "mean", seed=1)  # more picks than fit one block
    assert many is not None and many.high - many.low == pytest.approx(2 * 1.96 * 10_000 / math.sqrt(12e4), rel=0.2)


def test_reading_and_comparing_need_neither_numpy_nor_powerlaw() -> None:
    code = (
        "import sys; sys.modules.update(numpy=None, scipy=None, powerlaw=None)\n"
        "from cprbench.blueprint import concentration, drift, files, merge\n"
        "print(concentration.fit_exponent([(0.25, 0.5)])[0], drift.spearman([1, 2], [1, 2]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.5") or done.stdout.startswith("0.49999")
