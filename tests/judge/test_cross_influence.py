"""Cross-influence against tables whose answers can be computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cprbench.blueprint.concentration import predicted_retention
from cprbench.blueprint.cross_influence import exponents
from cprbench.errors import MethodError, SpecError
from cprbench.judge.cross_influence import (
    ZERO,
    analyse,
    blocks,
    grid,
    retained,
    spectrum,
    top_pairs,
)

SIZES = {"embed": 400, "attn.0": 100, "ffn.0": 200, "attn.1": 100, "ffn.1": 200}
U = np.array([9.0, 5.0, 2.0, 4.0, 3.0])
V = np.array([2.0, 8.0, 3.0, 5.0, 1.5, 1.0])
OUTER = np.outer(U, V)  # parameters and data independent: what eq. 35 assumes
ORDER = np.argsort(-V, kind="stable").tolist()  # 1 3 2 0 4 5


def kept(*qs: float) -> dict[float, list[int]]:
    return {q: ORDER[: int(q * len(V))] for q in qs}


def test_an_outer_product_has_effective_rank_one() -> None:
    found = spectrum(OUTER)
    assert found.effective_rank == pytest.approx(1.0)
    assert found.singular_values[1:] == (0,) * 4  # what rounding leaves is not a mode
    assert (found.rank_90, found.rank_99, found.why) == (1, 1, None)
    assert len(found.singular_values) == 5
    assert found.singular_values[0] == pytest.approx(np.linalg.norm(U) * np.linalg.norm(V))


def test_the_effective_rank_is_the_exponential_of_the_entropy() -> None:
    assert spectrum(np.eye(4)).effective_rank == pytest.approx(4.0)
    found = spectrum(np.diag([3.0, 1.0, 0.0]))
    assert found.singular_values == pytest.approx((3.0, 1.0, 0.0))
    assert found.effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert (found.rank_90, found.rank_99) == (1, 2)  # 9/10 of the squares exactly, then all
    assert (spectrum(np.eye(10)).rank_90, spectrum(np.eye(10)).rank_99) == (9, 10)
    for scale in (1e-200, 1e90):
        assert spectrum(scale * np.diag([3.0, 1.0])).effective_rank == pytest.approx(found.effective_rank)


def test_of_gradients_that_are_all_zero_nothing_is_told() -> None:
    zero = np.zeros((5, 6))
    assert spectrum(zero).effective_rank is None
    assert spectrum(zero).why == ZERO
    assert retained(zero, [0], [0], 1) is None
    assert top_pairs(zero, list(SIZES), list("abcdef"), 3) == []
    fits = exponents(zero, SIZES)
    assert (fits.gamma, fits.delta, fits.why) == (None, None, "gamma cannot be fitted")
    cells = grid(zero, SIZES, [0.3, 1], kept(0.5, 1))
    assert [c.eq34 for c in cells] == [None] * 4
    assert "every norm is 0" in (cells[0].why or "")
    assert cells[3].why == ZERO
    assert analyse(zero, list("abcdef"), SIZES, ORDER, block_count=2, ks=[1], kept=kept(1)).shares is None


def test_retention_of_an_outer_product_is_the_product_of_the_shares() -> None:
    rows, columns = [1, 3], [1, 3, 2]
    assert retained(OUTER, rows, columns, 1) == pytest.approx(9 / 23 * 16 / 20.5)
    assert retained(OUTER, rows, columns, 2) == pytest.approx(41 / 135 * 98 / (V @ V))
    assert retained(OUTER, rows, [], 1) == 0
    shuffled = np.random.default_rng(0).lognormal(size=(7, 101))
    for power in (1, 2):
        everything = range(6, -1, -1), range(100, -1, -1)
        assert retained(shuffled, *everything, power) == 1.0
        assert retained(shuffled.T.copy().T, *everything, power) == 1.0
    assert retained(1e-200 * OUTER, rows, columns, 2) == pytest.approx(retained(OUTER, rows, columns, 2))


def test_blocks_are_of_equal_size_in_the_given_order() -> None:
    block_of, means = blocks(OUTER, ORDER, 3)
    assert block_of.tolist() == [1, 0, 1, 0, 2, 2]
    assert means == pytest.approx(np.outer(U, [6.5, 2.5, 1.25]))
    block_of, means = blocks(OUTER, ORDER, 4)
    assert np.bincount(block_of).tolist() == [2, 2, 1, 1]
    assert means[0] == pytest.approx(9 * np.array([6.5, 2.5, 1.5, 1.0]))
    for count in (0, 7):
        with pytest.raises(SpecError, match=f"{count} blocks of 6 examples"):
            blocks(OUTER, ORDER, count)


def test_gamma_and_delta_are_fitted_to_curves_of_known_exponents() -> None:
    n, size = 200, 1000
    share = (np.arange(n + 1) / n) ** 0.6
    mass = (np.arange(size + 1) / size) ** 0.7
    table = np.outer(np.diff(share), np.diff(mass))
    shuffle = np.random.default_rng(0).permutation(size)
    found = exponents(table[::-1][:, shuffle], {f"ffn.{i}": 10 for i in range(n)})
    assert found.gamma == pytest.approx(0.6, abs=0.002)
    assert found.delta == pytest.approx(0.7, abs=0.002)
    assert found.gamma_r_squared == pytest.approx(1, abs=1e-4)
    assert found.delta_r_squared == pytest.approx(1, abs=1e-4)
    assert found.why is None


def test_gamma_walks_submodules_by_density_and_weighs_them_by_the_sum_of_t() -> None:
    # a: root mean square 5/sqrt(2) of 100 parameters, b: 4 of 300; so a comes first, with 5 of 13 of the sum.
    found = exponents(np.array([[5.0, 0.0], [4.0, 4.0]]), {"b": 100, "a": 300})
    assert found.gamma == pytest.approx(math.log(5 / 13) / math.log(0.25), abs=1e-6)


def test_a_poor_fit_predicts_nothing_by_eq_35_and_says_so() -> None:
    table = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [40, 40, 40, 40], [50, 50, 50, 50]])
    sizes = {"attn.0": 500, "ffn.0": 100, "attn.1": 200, "ffn.1": 200}
    fits = exponents(table, sizes)
    assert fits.why is not None
    cell = grid(table, sizes, [0.5], {1.0: [0, 1, 2, 3]})[0]
    assert cell.eq34 == pytest.approx(90 / 91)
    assert cell.eq35 is None
    assert cell.why == fits.why


def test_the_grid_picks_by_norm_without_input_tables_and_predicts_by_all_three() -> None:
    found = {(c.k, c.q): c for c in grid(OUTER, SIZES, [0.1, 0.25, 1], kept(0.5, 1))}
    assert list(found) == [(0.1, 0.5), (0.1, 1), (0.25, 0.5), (0.25, 1), (1, 0.5), (1, 1)]
    small = found[0.25, 0.5]
    assert small.submodules == ("attn.0", "attn.1")  # ffn.1 has no room left; embed is not asked
    assert (small.k_reached, small.q_reached) == (0.2, 0.5)
    assert small.eq34 == pytest.approx(9 / 23 * 16 / 20.5)
    assert small.eq34_squared == pytest.approx(41 / 135 * 98 / (V @ V))
    fits = exponents(OUTER, SIZES)
    assert fits.gamma is not None and fits.delta is not None
    assert small.eq35 == pytest.approx(predicted_retention(0.2, 0.5, fits.gamma, fits.delta))
    assert small.why is None
    coarse = grid(OUTER, SIZES, [0.25], {0.6: ORDER[:3]})[0]  # 3.6 examples are 3
    assert (coarse.q, coarse.q_reached, coarse.eq35) == (0.6, 0.5, small.eq35)
    whole = found[1, 1]
    assert whole.submodules == tuple(SIZES)
    assert (whole.k_reached, whole.eq34, whole.eq34_squared, whole.eq35) == (1, 1, 1, 1)


def test_the_norm_of_a_submodule_is_the_root_of_its_mean_square() -> None:
    spiky = np.array([[9.0, 0, 0, 0], [3, 3, 3, 3]])  # mean 2.25 and 3, root mean square 4.5 and 3
    sizes = {"attn.0": 10, "ffn.0": 10}
    for scale in (1.0, 1e-200):
        assert grid(scale * spiky, sizes, [0.5], {1.0: [0, 1, 2, 3]})[0].submodules == ("attn.0",)


def test_a_k_that_nothing_fits_has_a_reason_and_a_k_that_is_none_an_error() -> None:
    cell = grid(OUTER, SIZES, [0.09], kept(1))[0]
    assert (cell.k_reached, cell.submodules, cell.eq34, cell.eq34_squared, cell.eq35) == (None, (), None, None, None)
    assert "below the smallest submodule" in (cell.why or "")
    for k in (0.0, 1.1, math.nan, -0.5):
        with pytest.raises(MethodError, match="outside"):
            grid(OUTER, SIZES, [k], kept(1))


def test_the_largest_entries_come_with_their_share_and_equal_ones_by_id() -> None:
    found = top_pairs(OUTER, list(SIZES), list("abcdef"), 3)
    assert [(p.submodule, p.id, p.value) for p in found] == [
        ("embed", "b", 72.0),
        ("embed", "d", 45.0),
        ("attn.0", "b", 40.0),
    ]
    assert found[0].share == pytest.approx(72 / (23 * 20.5))
    flat = top_pairs(np.ones((2, 3)), ["attn.0", "ffn.0"], ["c", "a", "b"], 3)
    assert [(p.submodule, p.id) for p in flat] == [("attn.0", "a"), ("ffn.0", "a"), ("attn.0", "b")]
    assert len(top_pairs(np.ones((2, 3)), ["attn.0", "ffn.0"], ["c", "a", "b"], 100)) == 6
    sparse = np.array([[0.0, 2.0], [0.0, 0.0]])
    assert [p.value for p in top_pairs(sparse, ["attn.0", "ffn.0"], ["a", "b"], 3)] == [2.0]  # no zeros


def test_all_of_it_together() -> None:
    found: Any = analyse(OUTER, list("abcdef"), SIZES, ORDER, block_count=3, ks=[0.3], kept=kept(0.5), pairs=2)
    assert found.cells == tuple(SIZES)
    assert found.shares.sum() == pytest.approx(1)
    assert found.shares[1] == pytest.approx(5 / 23 * np.array([13, 5, 2.5]) / 20.5)
    assert (len(found.pairs), len(found.grid)) == (2, 1)
