"""Which examples a score keeps: counts, ties, bands, and the share of every class."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.adapt.selection.ranking import best_first, how_many, how_many_in, keep, parse_band, shares
from cprbench.errors import SpecError

NAMES = [f"x{i}" for i in range(10)]
SHARES = st.floats(0.01, 1)
#: Few different scores, so that ties are the rule.
SCORES = st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=1, max_size=40)


# --- how many -------------------------------------------------------------------------------------------


def test_a_share_of_examples_is_the_whole_examples_in_it_whatever_binary_fractions_say() -> None:
    assert [how_many(q, 100) for q in (0.29, 0.57, 0.58, 1, 0.999)] == [29, 57, 58, 100, 99]  # 0.29 * 100 < 29
    assert [how_many(0.3, n) for n in (4, 9, 10)] == [1, 2, 3]


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_share_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(SpecError, match=r"^q = .* is outside \(0, 1\]"):
        how_many(q, 10)


@given(st.integers(1, 10**7))
def test_the_least_share_that_a_refusal_names_is_not_refused_itself(examples: int) -> None:
    with pytest.raises(SpecError, match=f"of {examples} examples keeps none. The smallest q here is ") as caught:
        how_many(1e-9, examples)
    least = float(str(caught.value).rpartition(" ")[2].removesuffix("."))
    assert how_many(least, examples) == 1
    assert least <= 1.001 / examples


def test_the_least_share_of_three_examples_is_rounded_up() -> None:
    with pytest.raises(SpecError, match=r"The smallest q here is 0\.3334\.$"):
        how_many(0.3333, 3)


def test_a_band_is_read_in_percentiles() -> None:
    assert parse_band("20..80") == (0.2, 0.8)
    assert parse_band("0..99.5") == (0.0, 0.995)
    assert how_many_in("25..75", 8) == 4


@pytest.mark.parametrize(
    "band",
    [
        "",
        "20",
        "20..",
        "20...80",
        "80..20",
        "20..20",
        "0..100.1",
        "-1..5",
        "a..b",
        "20..80x",
        "1e1..20",
        " 20..80",
        "0.2-1",
    ],
)
def test_what_is_no_band_is_refused_with_an_example(band: str) -> None:
    with pytest.raises(SpecError, match=r"write LOW..HIGH in percentiles of the score, for example 20..80"):
        parse_band(band)


def test_a_band_that_holds_none_is_refused() -> None:
    with pytest.raises(SpecError, match="'50..51' of 10 examples keeps none. Widen it"):
        how_many_in("50..51", 10)
    with pytest.raises(SpecError, match="keeps none"):
        keep(range(10), NAMES, [], q=1, band="50..51")


# --- the best -------------------------------------------------------------------------------------------


def test_the_largest_scores_are_kept_in_the_order_of_the_file() -> None:
    assert keep([5, 1, 4, 2, 3, 9, 8, 0, 7, 6], NAMES, [], q=0.3) == [5, 6, 8]


def test_ties_fall_by_the_hash_of_ids() -> None:
    # The first digits of sha256_of(["tie", id]): a 26, k 46, c 5a, j 69.
    assert [best_first([1, 1, 1, 1], ids) for ids in ("acjk", "kjca")] == [[0, 3, 1, 2], [3, 0, 2, 1]]
    assert best_first([0, 0, 9, 0], "acjk") == [2, 0, 3, 1]


@given(SCORES, SHARES, st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["", "20..80", "50..100"]))
def test_the_order_of_the_file_decides_nothing(scores: list[float], q: float, random, guard: bool, band: str) -> None:  # type: ignore[no-untyped-def]
    ids = [f"x{i}" for i in range(len(scores))]
    labels = ["aab"[i % 3] for i in range(len(scores))]
    shuffled = list(range(len(scores)))
    random.shuffle(shuffled)

    def kept(order: list[int]) -> set[str] | str:
        own = [ids[i] for i in order]
        try:
            found = keep([scores[i] for i in order], own, [labels[i] for i in order], q=q, band=band, class_guard=guard)
        except SpecError as error:
            return str(error)
        return {own[place] for place in found}

    assert kept(shuffled) == kept(list(range(len(scores))))


@given(SCORES, SHARES)
def test_as_many_as_the_share_says_are_kept_and_none_of_the_rest_scores_more(scores: list[float], q: float) -> None:
    q = max(q, 1 / len(scores))
    found = keep(scores, [f"x{i}" for i in range(len(scores))], [], q=q)
    assert len(found) == how_many(q, len(scores))
    assert found == sorted(set(found))
    rest = set(range(len(scores))) - set(found)
    assert min(scores[i] for i in found) >= max((scores[i] for i in rest), default=-1)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_example(odd: float) -> None:
    with pytest.raises(SpecError, match=f"the score of example 'b' is {odd}: scores are finite"):
        keep([1.0, odd, 3.0], ["a", "b", "c"], [], q=1)


# --- a band ---------------------------------------------------------------------------------------------


def test_a_band_counts_from_the_least_score() -> None:
    assert keep([9, 0, 8, 1, 7, 2, 6, 3, 5, 4], NAMES, [], q=1, band="20..80") == [4, 5, 6, 7, 8, 9]
    assert keep(range(10), NAMES, [], q=1, band="0..30") == [0, 1, 2]
    assert keep(range(10), NAMES, [], q=0.1, band="70..100") == [7, 8, 9]  # q says nothing


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=60), st.lists(st.integers(1, 99), max_size=3, unique=True))
def test_bands_that_meet_share_no_example_and_leave_none_out(scores: list[float], cuts: list[int]) -> None:
    ids = [f"x{i}" for i in range(len(scores))]
    edges = [0, *sorted(cuts), 100]
    found: list[int] = []
    for low, high in pairwise(edges):
        try:
            part = keep(scores, ids, [], q=1, band=f"{low}..{high}")
        except SpecError:  # a thin one holds none
            continue
        assert len(part) == how_many_in(f"{low}..{high}", len(ids))
        found += part
    assert sorted(found) == list(range(len(ids)))


@given(st.lists(st.floats(0, 1e6), min_size=10, max_size=60))
def test_the_band_up_to_100_is_the_share_of_that_size(scores: list[float]) -> None:
    scores = scores[: len(scores) // 10 * 10]
    ids = [f"x{i}" for i in range(len(scores))]
    assert keep(scores, ids, [], q=1, band="70..100") == keep(scores, ids, [], q=0.3)


# --- classes --------------------------------------------------------------------------------------------


def test_without_the_guard_a_class_of_small_scores_is_lost_and_with_it_every_class_keeps_its_share() -> None:
    labels = ["a"] * 5 + ["b"] * 5  # all of b score more
    assert keep(range(10), NAMES, labels, q=0.4) == [6, 7, 8, 9]
    assert keep(range(10), NAMES, labels, q=0.4, class_guard=True) == [3, 4, 8, 9]
    assert keep(range(10), NAMES, labels, q=1, band="40..80", class_guard=True) == [2, 3, 7, 8]


def test_a_class_of_one_is_kept_by_the_guard_in_a_band_too() -> None:
    labels = ["b"] + ["a"] * 9
    assert keep(range(10), NAMES, labels, q=0.2, class_guard=True) == [0, 9]
    assert keep(range(10), NAMES, labels, q=1, band="60..100", class_guard=True) == [0, 7, 8, 9]
    assert keep(range(10), NAMES, labels, q=1, band="0..40", class_guard=True) == [0, 1, 2, 3]
    assert keep(range(10), NAMES, labels, q=1, band="10..40", class_guard=True) == [0, 3, 4]
    assert keep(range(9, -1, -1), NAMES, labels, q=1, band="0..40", class_guard=True) == [0, 7, 8, 9]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5)), min_size=1, max_size=60),
    SHARES,
    st.sampled_from(["", "0..30", "10..40", "40..100"]),
)
def test_the_guard_keeps_as_many_and_every_class_that_fits(rows: list[tuple[str, int]], q: float, band: str) -> None:
    labels, scores, ids = [row[0] for row in rows], [row[1] for row in rows], [f"x{i}" for i in range(len(rows))]
    try:
        wanted = how_many_in(band, len(rows)) if band else how_many(q, len(rows))
    except SpecError:
        return
    found = keep(scores, ids, labels, q=q, band=band, class_guard=True)
    assert len(found) == len(set(found)) == wanted
    left, there = Counter(labels[i] for i in found), Counter(labels)
    if wanted >= len(there):
        assert set(left) == set(there)
    for label in there:  # a class's kept examples stand together in its own ranks: no hole among them
        order = [i for i in best_first(scores, ids) if labels[i] == label]
        places = [order.index(i) for i in found if labels[i] == label]
        assert sorted(places) == list(range(min(places, default=0), min(places, default=0) + len(places)))
        if band in ("", "40..100"):
            assert min(places, default=0) == 0
        if band == "0..30":
            assert max(places, default=len(order) - 1) == len(order) - 1


def test_shares_fall_by_largest_remainder() -> None:
    assert shares([50, 30, 20], 10) == [5, 3, 2]
    assert shares([5, 3, 1], 4) == [2, 1, 1]  # exactly 2.22, 1.33 and 0.44: the last remainder is the largest
    assert shares([7, 7, 7], 10) == [4, 3, 3]  # equal remainders: the first
    assert shares([97, 1, 1, 1], 10) == [7, 1, 1, 1]  # one each comes before the share of 9.7
    assert shares([60, 37, 1, 1, 1], 8) == [3, 2, 1, 1, 1]  # exactly 4.8 and 2.96: the one furthest above pays
    assert shares([2, 3, 12], 2) == [0, 0, 2]  # too few for one each: 0.24, 0.35 and 1.41
    assert shares([4, 2], 6) == [4, 2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.data())
def test_shares_sum_up_and_stay_next_to_exact_ones(sizes: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, sum(sizes)))
    found = shares(sizes, wanted)
    assert sum(found) == wanted
    assert all(0 <= share <= size for share, size in zip(found, sizes, strict=True))
    exact = [wanted * size / sum(sizes) for size in sizes]
    if wanted >= len(sizes):
        assert min(found) >= 1
    if wanted < len(sizes) or min(exact) >= 1:  # nobody was lifted, so nobody pays
        assert all(math.floor(e) <= share <= math.floor(e) + 1 for share, e in zip(found, exact, strict=True))
    for a, b in ((a, b) for a in range(len(sizes)) for b in range(len(sizes)) if sizes[a] > sizes[b]):
        assert found[a] >= found[b], "a larger class keeps no fewer"
