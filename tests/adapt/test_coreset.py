"""Selection coreset: both covers against brute force, and what it asks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cprbench.adapt.selection import (
    build_selection,
    coreset,
)
from tests.adapt.test_selections import Lab
from tests.adapt.test_selections_measured import lab_ranked

# --- coreset --------------------------------------------------------------------------------------------


def farthest_first(points: Sequence[tuple[int, ...]], count: int, first: int) -> list[int]:
    """Farthest-first traversal as it is written down, in whole numbers."""
    taken = [first]
    while len(taken) < count:
        rest = [i for i in range(len(points)) if i not in taken]
        taken.append(max(rest, key=lambda i: (min(squared(points[i], points[j]) for j in taken), -i)))
    return taken


def squared(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


GRID = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(GRID, st.data())
def test_k_center_is_farthest_first_from_the_middle(points: list[tuple[int, int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    found = coreset.k_center(np.array(points, dtype=float), count, seed=0)
    assert found == farthest_first(points, count, found[0])
    middle = np.mean(points, axis=0)
    assert math.dist(points[found[0]], middle) <= min(math.dist(p, middle) for p in points) + 1e-9
    distinct = {points[i] for i in found}
    assert len(distinct) == min(count, len(set(points)))  # duplicates come last


def radius(points: Sequence[tuple[int, int]], centers: Sequence[int]) -> float:
    return max(min(math.dist(p, points[i]) for i in centers) for p in points)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=8))
@settings(max_examples=40, deadline=None)
def test_k_center_covers_within_twice_the_best_radius(points: list[tuple[int, int]]) -> None:
    found = coreset.k_center(np.array(points, dtype=float), 3, seed=0)
    best = min(radius(points, some) for some in combinations(range(len(points)), 3))
    assert radius(points, found) <= 2 * best + 1e-9  # Gonzalez 1985, theorem 2.2


def similarity(points: NDArray[Any], taken: Any) -> float:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return float((unit @ unit[list(taken)].T).max(1).mean())


def clusters(n: int = 240) -> NDArray[Any]:
    """Return points in 8 directions of unlike sizes."""
    random = np.random.default_rng(5)
    centers = np.eye(8)[np.minimum(random.geometric(0.35, n) - 1, 7)]
    points: NDArray[Any] = (centers + 0.1 * random.normal(size=(n, 8))) * random.lognormal(size=(n, 1))
    return points


def greedy(points: NDArray[Any], count: int) -> list[int]:
    taken: list[int] = []
    for _ in range(count):
        rest = [i for i in range(len(points)) if i not in taken]
        taken.append(max(rest, key=lambda i: similarity(points, [*taken, i])))
    return taken


def test_facility_location_covers_almost_as_well_as_full_greedy_and_better_than_any_lot() -> None:
    points = clusters()
    best = similarity(points, greedy(points, 8))
    random = np.random.default_rng(0)
    by_lot = max(similarity(points, random.choice(240, 8, replace=False)) for _ in range(20))
    for seed in range(5):
        found = coreset.facility_location(points, 8, seed)
        assert len(set(found)) == 8
        assert found == coreset.facility_location(points, 8, seed)
        assert similarity(points, found) > by_lot
        assert similarity(points, found) > 0.97 * best


def test_facility_location_on_a_part_of_the_points_still_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clusters()
    assert len({coreset.facility_location(points, 1, seed)[0] for seed in range(5)}) == 1  # every point is looked at
    monkeypatch.setattr(coreset, "_COVERED", 80)
    assert len({coreset.facility_location(points, 1, seed)[0] for seed in range(5)}) > 1
    seen = {tuple(coreset.facility_location(points, 8, seed)) for seed in range(5)}
    assert len(seen) > 1
    random = np.random.default_rng(0)
    by_lot = np.mean([similarity(points, random.choice(240, 8, replace=False)) for _ in range(20)])
    assert min(similarity(points, found) for found in seen) > by_lot


@pytest.mark.parametrize("cover", [coreset.k_center, coreset.facility_location])
def test_a_cover_of_all_is_all_of_none_is_none_and_equal_points_are_no_trouble(cover: Any) -> None:
    points = clusters(20)
    assert sorted(cover(points, 20, 0)) == list(range(20))
    assert cover(points, 0, 0) == []
    for same in (np.zeros((6, 3)), np.ones((6, 3))):  # a zero vector has no direction
        assert len(set(cover(same, 4, 0))) == 4


@pytest.mark.parametrize("objective", ["k-center", "facility-location"])
def test_a_coreset_asks_only_for_the_embedding_that_it_covers(objective: str) -> None:
    lab = Lab(60)
    forward = build_selection("coreset", {"objective": objective}).select(lab.pool())
    assert lab.measured == [(list(range(60)), False, True)]  # one forward pass each, no gradients
    assert not lab.embedded
    lab.measured.clear()
    means = build_selection("coreset", {"objective": objective, "embedding": "input"}).select(lab.pool())
    assert lab.embedded == [list(range(60))]
    assert not lab.measured
    assert forward.places != means.places


def test_objectives_cover_what_they_say() -> None:
    lab = Lab(60)
    center = build_selection("coreset", {"q": 0.1}).select(lab.pool())
    assert center.places == tuple(sorted(coreset.k_center(lab.states.astype(np.float64), 6, 0)))
    facility = build_selection("coreset", {"q": 0.1, "objective": "facility-location"}).select(lab.pool())
    other = build_selection("coreset", {"q": 0.1, "objective": "facility-location"}).select(lab.pool(seed=2))
    assert other.places != facility.places  # its candidates are drawn
    assert similarity(lab.states, facility.places) > similarity(lab.states, center.places)


def test_the_guard_of_a_coreset_covers_every_class_by_its_share() -> None:
    lab = Lab(60)
    lab.labels = ["a"] * 40 + ["b"] * 19 + ["c"]
    lab.states[59] = lab.states[0]  # it covers nothing that another does not
    for objective in ("k-center", "facility-location"):
        guarded = {"q": 0.1, "objective": objective, "class_guard": True}
        found = build_selection("coreset", guarded).select(lab.pool())
        assert Counter(lab.labels[i] for i in found.places) == {"a": 4, "b": 1, "c": 1}  # exactly 4, 1.9 and 0.1
        assert found.notes["classes_dropped"] == []
    without = build_selection("coreset", {"q": 0.1}).select(lab.pool())
    assert "c" in without.notes["classes_dropped"]


def test_a_class_without_a_place_is_left_out_of_a_coreset_and_named() -> None:
    lab = lab_ranked([0.0] * 30, labels=["a", "b", "c"] * 10)
    found = build_selection("coreset", {"q": 0.04, "class_guard": True}).select(lab.pool())
    assert (len(found.places), len(found.notes["classes_dropped"])) == (1, 2)
