"""Resampled items: psi as the scorer computes it, and the variance that items alone give a mean gain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cprbench.adapt.scoring import Prediction, psi
from cprbench.judge.statistics import RESAMPLES, Scored, gain_covariance, item_weights, psi_resamples

Row = dict[str, Any]
ITEMS = 400


def scored(seed: int, skill: float, items: int = ITEMS) -> list[Row]:
    """Rows of a run that is right with probability `skill`, on three labels of which one is rare."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(items):
        reference = "abc"[0 if i % 10 else 1 + i % 20 // 10]
        said = reference if generator.random() < skill else str(generator.choice(list("abc")))
        scores = {"nll": float(generator.exponential()), "bytes": int(generator.integers(1, 90)), "log_likelihoods": {}}
        rows.append({"id": f"item-{i}", "prediction": said, "reference": reference, "scores": scores})
    return rows


def known(metric: str, arm: list[tuple[list[Row], list[Row]]], *more: Any) -> np.ndarray:
    found = gain_covariance(metric, arm, *more)
    assert found.why is None
    assert found.covariance is not None
    assert found.variance == found.covariance[0][0]
    return np.array(found.covariance)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "nll"])
def test_items_that_count_twice_give_the_psi_of_a_test_that_asks_them_twice(metric: str) -> None:
    rows = scored(1, 0.4, 30)
    once = psi_resamples(metric, [rows], np.ones((1, 30)))
    assert once[0, 0] == pytest.approx(psi([Prediction.from_row(row) for row in rows], [metric])[metric])
    by_id = sorted(rows, key=lambda row: row["id"])
    counts = np.random.default_rng(0).multinomial(30, [1 / 30] * 30)
    counts[[i for i, row in enumerate(by_id) if "c" in (row["reference"], row["prediction"])]] = 0  # a label less
    counts[next(i for i, count in enumerate(counts) if count)] += 30 - counts.sum()
    repeated = [row for row, count in zip(by_id, counts, strict=True) for _ in range(count)]
    expected = psi([Prediction.from_row(row) for row in repeated], [metric])[metric]
    assert psi_resamples(metric, [rows], counts[None].astype(float))[0, 0] == pytest.approx(expected)


def test_bits_per_byte_adds_up_nll_and_bytes_before_it_divides() -> None:
    rows = scored(2, 0.5, 3)
    for row, nll, size in zip(rows, (1.0, 2.0, 5.0), (1, 3, 10), strict=True):
        row["scores"] |= {"nll": nll, "bytes": size}
    found = psi_resamples("bits_per_byte", [rows], np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]))
    assert found[:, 0].tolist() == pytest.approx([8 / 14 / math.log(2), 9 / 16 / math.log(2)])


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_one_block_has_the_textbook_variance_of_a_paired_difference(metric: str) -> None:
    after, before = scored(3, 0.7), scored(4, 0.3)
    value = {
        "accuracy": lambda row: float(row["prediction"] == row["reference"]),
        "nll": lambda row: row["scores"]["nll"],
    }[metric]
    differences = [value(a) - value(b) for a, b in zip(after, before, strict=True)]
    assert known(metric, [(after, before)])[0, 0] == pytest.approx(np.var(differences) / ITEMS, rel=0.1)


def test_the_same_items_in_more_blocks_do_not_average_out() -> None:
    pair = scored(5, 0.7), scored(6, 0.3)
    one, five = known("accuracy", [pair]), known("accuracy", [pair] * 5)
    assert five[0, 0] == pytest.approx(one[0, 0])
    noisy = known("accuracy", [(scored(seed, 0.7), pair[1]) for seed in range(5)])
    assert noisy[0, 0] < 0.8 * one[0, 0]  # what models answer by chance does


def test_the_covariance_is_of_the_arms_gain_and_of_fulls_scaled_block_by_block() -> None:
    arm = [(scored(seed, 0.6), scored(99, 0.2)) for seed in (10, 11)]
    full = [(scored(seed, 0.8), scored(99, 0.2)) for seed in (20, 21)]
    plain = known("accuracy", arm, full)
    assert plain[0, 1] == plain[1, 0] > 0  # both answered the same questions, and left the same base
    assert known("accuracy", arm, arm) == pytest.approx(np.full((2, 2), plain[0, 0]))
    assert known("accuracy", arm, full, [2.0, 2.0]) == pytest.approx(plain * [[1, 2], [2, 4]])
    only = known("accuracy", full[:1])[0, 0]
    assert known("accuracy", arm, full, [4.0, 0.0])[1, 1] == pytest.approx(4 * only)  # (4 x the first + 0) / 2
    assert known("accuracy", arm).tolist() == [[plain[0, 0], 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="one entry per block"):
        gain_covariance("accuracy", arm, full, [1.0])
    with pytest.raises(ValueError, match="one entry per block"):
        gain_covariance("accuracy", arm, full[:1])


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    after, before = scored(7, 0.7), scored(8, 0.3)
    assert known("macro_f1", [(after[::-1], before)]).tolist() == known("macro_f1", [(after, before)]).tolist()
    assert known("macro_f1", [(after, before)])[0, 0] > 0


def test_a_run_that_was_resampled_once_enters_every_comparison_as_its_rows_do() -> None:
    after, before = scored(7, 0.7), scored(8, 0.3)
    kept = Scored("accuracy", before)
    for arm in (after, before[::-1]):
        plain = known("accuracy", [(arm, before)]).tolist()
        assert known("accuracy", [(Scored("accuracy", arm), kept)]).tolist() == plain
        assert known("accuracy", [(arm, kept)]).tolist() == plain
    assert kept.resamples is kept.resamples


def test_runs_on_other_items_or_without_what_a_metric_needs_have_no_item_error() -> None:
    rows = scored(9, 0.5)
    twice = [*rows[:-1], rows[0]]
    for other in (rows[:-1], [*rows[:-1], rows[-1] | {"id": "other"}]):
        assert gain_covariance("accuracy", [(rows, rows)], [(rows, other)]).why == (
            "the runs were not scored on the same items"
        )
    assert gain_covariance("accuracy", [(twice, twice)]).covariance is None
    for arm in ([(rows, [])], []):
        assert gain_covariance("accuracy", arm).why == "no predictions are stored"
    for absent in ({}, {"rouge": None}):
        bare = [row | {"scores": absent} for row in rows]
        assert gain_covariance("rouge", [(bare, bare)]).why == "the predictions hold no rouge for rouge"
    torn = [row | {"scores": None} for row in rows]
    assert gain_covariance("nll", [(rows, torn)]).why == "the predictions cannot be read"
    infinite = [rows[0] | {"scores": {"nll": math.inf}}, *rows[1:]]
    assert "not finite" in str(gain_covariance("nll", [(infinite, rows)]).why)


def test_every_draw_is_as_large_as_the_test_and_the_same_in_every_process() -> None:
    weights = item_weights(50)
    assert weights.shape == (RESAMPLES, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.02)
    # Written down once: other draws would move the digits of every stored verdict.
    assert weights[0, :10].tolist() == [1, 0, 0, 0, 2, 2, 1, 2, 1, 3]
    assert weights.tolist() != item_weights(50, seed=1).tolist()
