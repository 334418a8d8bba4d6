"""The one filling rule of k-sets, by example and by its properties."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from cprbench.blueprint.picking import (
    PICKERS,
    Picked,
    check,
    fill,
    layers_reached,
    pick,
    rank,
    rank_per_cost,
    step_seconds,
)
from cprbench.blueprint.schema import StepCost
from cprbench.errors import MethodError

#: In partition order; N = 100.
SIZES = {"embed": 40, "attn.0": 10, "ffn.0": 20, "attn.1": 10, "ffn.1": 20}
RANKED = ["ffn.1", "embed", "attn.0", "ffn.0", "attn.1"]


def picked(k: float, *, embed: bool = False) -> tuple[str, ...]:
    return fill(RANKED, SIZES, 100, k, embed=embed).submodules


def test_the_walk_takes_the_best_first_and_skips_what_would_exceed() -> None:
    assert picked(0.1) == ("attn.0",)  # ffn.1 is better, and too large
    assert picked(0.2) == ("ffn.1",)
    assert picked(0.3) == ("attn.0", "ffn.1")
    assert picked(0.45) == ("attn.0", "attn.1", "ffn.1")  # after attn.0 ffn.0 would exceed; attn.1 fits
    assert picked(0.6) == ("attn.0", "ffn.0", "attn.1", "ffn.1")


def test_a_set_stands_in_partition_order_whatever_the_ranks() -> None:
    turned = fill(RANKED[::-1], SIZES, 100, 0.6, embed=False)
    assert turned.submodules == ("attn.0", "ffn.0", "attn.1", "ffn.1")


def test_the_input_tables_are_taken_only_on_request() -> None:
    assert "embed" not in picked(0.9)
    assert picked(0.6, embed=True) == ("embed", "ffn.1")
    assert "embed" not in picked(0.3, embed=True)


def test_the_share_reached_is_that_of_the_set() -> None:
    assert fill(RANKED, SIZES, 100, 0.45, embed=False).k_reached == 0.4
    assert fill(RANKED, SIZES, 200, 0.45, embed=False).k_reached == 0.3  # of N, whatever else N holds


def test_everything_with_embed_is_everything() -> None:
    full = fill(RANKED, SIZES, 100, 1, embed=True)
    assert full.submodules == tuple(SIZES)
    assert full.k_reached == 1
    assert picked(1) == ("attn.0", "ffn.0", "attn.1", "ffn.1")


@pytest.mark.parametrize("k", [0, -0.1, 1.0001, 15, float("nan"), float("inf")])
def test_a_k_outside_its_range_is_refused(k: float) -> None:
    with pytest.raises(MethodError, match=r"k = .* is outside \(0, 1\]"):
        picked(k)


def test_a_k_below_the_smallest_submodule_names_it_and_its_share() -> None:
    with pytest.raises(MethodError, match=r"smallest submodule: 'attn\.0' holds 0\.1000 .* at least 0\.1000"):
        picked(0.09)
    sizes = {"embed": 1, "attn.0": 9}
    assert fill(list(sizes), sizes, 10, 0.1, embed=True).submodules == ("embed",)
    with pytest.raises(MethodError, match=r"'attn\.0' holds 0\.9000"):
        fill(list(sizes), sizes, 10, 0.1, embed=False)


@pytest.mark.parametrize("smallest", [141_312, 258_118])
def test_asking_for_the_share_that_the_error_names_works(smallest: int) -> None:
    sizes = {"attn.0": smallest, "ffn.0": 2 * smallest + 4}
    total = 10_000_019
    with pytest.raises(MethodError) as caught:
        check(sizes, total, 0.001, embed=False)
    named = re.search(r"at least (\S+)\.$", str(caught.value))
    assert named is not None
    check(sizes, total, float(named.group(1)), embed=False)


def test_a_submodule_of_exactly_the_share_asked_for_is_taken() -> None:
    assert fill(["attn.0"], {"attn.0": 29, "ffn.0": 71}, 100, 0.29, embed=False).submodules == ("attn.0",)


def test_a_model_of_input_tables_alone_is_refused_in_words() -> None:
    with pytest.raises(MethodError, match="embed"):
        check({"embed": 10}, 10, 0.5, embed=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], dict[str, int], int, float, bool]:
    """Return (ranked, sizes, total, k, embed) of a made-up model."""
    layers = draw(st.integers(1, 6))
    names = ["embed", *(f"{kind}.{i}" for i in range(layers) for kind in ("attn", "ffn")), "head"]
    sizes = {name: draw(st.integers(1, 10**7)) for name in names}
    k = draw(st.floats(0, 1, exclude_min=True))
    return draw(st.permutations(names)), sizes, sum(sizes.values()), k, draw(st.booleans())


def possible(sizes: dict[str, int], total: int, k: float, embed: bool) -> bool:
    try:
        check(sizes, total, k, embed=embed)
    except MethodError:
        return False
    return True


@given(cases())
def test_a_set_never_exceeds_the_share_asked_for(case: tuple[list[str], dict[str, int], int, float, bool]) -> None:
    ranked, sizes, total, k, embed = case
    assume(possible(sizes, total, k, embed))
    found = fill(ranked, sizes, total, k, embed=embed)
    assert sum(sizes[name] for name in found.submodules) <= k * total * (1 + 1e-12)
    assert found.k_reached == sum(sizes[name] for name in found.submodules) / total
    assert embed or "embed" not in found.submodules


@given(cases())
def test_a_set_is_never_empty_where_the_check_passes_and_an_error_where_it_does_not(
    case: tuple[list[str], dict[str, int], int, float, bool],
) -> None:
    ranked, sizes, total, k, embed = case
    if possible(sizes, total, k, embed):
        assert fill(ranked, sizes, total, k, embed=embed).submodules
    else:
        assert all(size > k * total for name, size in sizes.items() if embed or name != "embed")
        with pytest.raises(MethodError, match="smallest submodule"):
            fill(ranked, sizes, total, k, embed=embed)


@given(cases())
def test_the_same_ranks_give_the_same_set_and_nothing_that_fits_is_left_out(
    case: tuple[list[str], dict[str, int], int, float, bool],
) -> None:
    ranked, sizes, total, k, embed = case
    assume(possible(sizes, total, k, embed))
    found = fill(ranked, sizes, total, k, embed=embed)
    assert found == fill(list(ranked), dict(sizes), total, k, embed=embed)
    room = k * total - sum(sizes[name] for name in found.submodules)
    left = [name for name in sizes if name not in found.submodules and (embed or name != "embed")]
    assert all(sizes[name] > room - 1e-6 for name in left)


#: Norms that every picker orders differently.
NORMS = {"embed": 9.0, "attn.0": 4.0, "ffn.0": 5.0, "attn.1": 2.0, "ffn.1": 6.0}


def test_each_score_has_its_own_order() -> None:
    assert rank(NORMS, SIZES, "norm") == ["embed", "ffn.1", "ffn.0", "attn.0", "attn.1"]
    assert rank(NORMS, SIZES, "density") == ["embed", "ffn.1", "attn.0", "ffn.0", "attn.1"]
    assert rank(NORMS, SIZES, "per-parameter") == ["attn.0", "ffn.1", "ffn.0", "embed", "attn.1"]


def test_equal_scores_stay_in_partition_order_whatever_the_order_of_the_norms() -> None:
    norms = dict.fromkeys(reversed(SIZES), 1.0)
    assert rank(norms, SIZES, "norm") == list(SIZES)


def test_a_pick_fills_by_the_one_rule() -> None:
    assert pick(NORMS, SIZES, 100, 0.3) == fill(rank(NORMS, SIZES, "norm"), SIZES, 100, 0.3, embed=False)
    assert pick(NORMS, SIZES, 100, 0.3, by="per-parameter").submodules == ("attn.0", "ffn.1")
    assert pick(NORMS, SIZES, 100, 0.4, embed=True).submodules == ("embed",)


def test_a_layer_is_taken_whole_with_the_root_of_its_summed_squares() -> None:
    sizes = {"embed": 40, "attn.0": 10, "ffn.0": 20, "attn.1": 10, "ffn.1": 20, "head": 5}
    norms = {"embed": 9.0, "attn.0": 0.1, "ffn.0": 4.9, "attn.1": 3.2, "ffn.1": 3.2, "head": 4.0}
    assert pick(norms, sizes, 105, 0.3, granularity="layer").submodules == ("attn.0", "ffn.0")  # 4.9 beats 3.2 * 1.41
    assert pick(norms, sizes, 105, 0.35, granularity="layer").submodules == ("attn.0", "ffn.0", "head")
    assert pick(norms, sizes, 105, 0.3).submodules == ("ffn.0", "head")
    assert pick(norms, sizes, 105, 1, granularity="layer", embed=True) == Picked(tuple(sizes), 1.0)


def test_unknown_words_name_the_nearest_known_one() -> None:
    with pytest.raises(MethodError, match="Did you mean 'density'"):
        pick(NORMS, SIZES, 100, 0.3, by="densty")
    with pytest.raises(MethodError, match="Did you mean 'layer'"):
        pick(NORMS, SIZES, 100, 0.3, granularity="layers")


@pytest.mark.parametrize(
    ("norms", "words"),
    [
        ({name: norm for name, norm in NORMS.items() if name != "ffn.0"}, "have no submodule ffn.0"),
        ({**NORMS, "ffn.7": 1.0}, "unknown submodule ffn.7"),
        ({**NORMS, "ffn.0": float("nan")}, "norm of 'ffn.0' is nan"),
        ({**NORMS, "ffn.0": -1.0}, "norm of 'ffn.0' is -1"),
    ],
)
@pytest.mark.parametrize("by", PICKERS)
def test_norms_that_cannot_be_of_this_model_are_refused_by_every_picker(
    norms: dict[str, float], words: str, by: str
) -> None:
    with pytest.raises(MethodError, match=words):
        pick(norms, SIZES, 100, 0.3, by=by, cost=COST)


def test_per_cost_asks_for_a_measured_step() -> None:
    free = StepCost(forward_seconds=0, backward_seconds_per_layer=1, seconds_per_parameter=0, batch_size=1, tokens=1)
    for cost in (None, free):
        with pytest.raises(MethodError, match="asks for step_cost"):
            pick(NORMS, SIZES, 100, 0.3, by="per-cost", cost=cost)
    with pytest.raises(MethodError, match="needs k"):
        rank(NORMS, SIZES, "per-cost")


def step(forward: float, per_layer: float, per_parameter: float) -> StepCost:
    return StepCost(
        forward_seconds=forward,
        backward_seconds_per_layer=per_layer,
        seconds_per_parameter=per_parameter,
        batch_size=32,
        tokens=48,
    )


COST = step(1, 1, 0.01)


def test_the_backward_pass_reaches_from_the_loss_down_to_the_lowest_submodule() -> None:
    assert layers_reached([*SIZES, "head"]) == {
        "embed": 2, "attn.0": 2, "ffn.0": 2, "attn.1": 1, "ffn.1": 1, "head": 0
    }  # fmt: skip
    sizes = {**SIZES, "head": 5}
    assert step_seconds(["head"], sizes, COST) == pytest.approx(1 + 0.05)
    assert step_seconds(["ffn.1", "head"], sizes, COST) == pytest.approx(1 + 1 + 0.25)
    assert step_seconds(["attn.0", "ffn.1"], sizes, COST) == pytest.approx(1 + 2 + 0.3)
    assert step_seconds([], sizes, COST) == 1


def test_per_cost_leaves_a_dense_submodule_at_the_bottom_that_makes_every_layer_above_cost() -> None:
    sizes = {f"ffn.{i}": 10 for i in range(10)}
    norms = {**dict.fromkeys(sizes, 0.1), "ffn.0": 1.1, "ffn.8": 1.0, "ffn.9": 1.0}
    dear, free = step(1, 1, 0), step(1, 0, 0)
    assert pick(norms, sizes, 100, 0.2, by="density").submodules == ("ffn.0", "ffn.8")
    assert pick(norms, sizes, 100, 0.2, by="per-cost", cost=dear).submodules == ("ffn.8", "ffn.9")
    assert pick(norms, sizes, 100, 0.2, by="per-cost", cost=free).submodules == ("ffn.0", "ffn.8")


def test_of_equal_rates_per_cost_takes_the_shallower_cut() -> None:
    sizes = {f"ffn.{i}": 10 for i in range(4)}
    found = pick(dict.fromkeys(sizes, 1.0), sizes, 40, 0.5, by="per-cost", cost=step(1, 0, 0))
    assert found.submodules == ("ffn.2", "ffn.3")


def test_per_cost_judges_a_cut_by_the_set_it_ends_in_and_fills_what_is_left_from_nearby() -> None:
    sizes = {**{f"ffn.{i}": 10 for i in range(4)}, "head": 1}
    norms = {"ffn.0": 0.9, "ffn.1": 0.5, "ffn.2": 0.4, "ffn.3": 1.0, "head": 5.0}
    assert pick(norms, sizes, 41, 1 / 2, by="per-cost", cost=step(1, 1, 0)).submodules == ("ffn.3", "head")
    found = pick(norms, sizes, 41, 21 / 41, by="per-cost", cost=step(1, 1, 0))
    assert found.submodules == ("ffn.2", "ffn.3", "head")  # the head alone has the best rate, and leaves room for two
    assert found.k_reached == 21 / 41


@st.composite
def priced(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, int], float, bool, StepCost]:
    """Return (norms, sizes, k, embed, cost) of a made-up model."""
    _, sizes, _, k, embed = draw(cases())
    norms = {name: draw(st.floats(0, 100)) for name in sizes}
    prices = [draw(st.floats(low, 1)) for low in (0.01, 0, 0)]
    return norms, sizes, k, embed, step(prices[0], prices[1], prices[2] / sum(sizes.values()))


@given(priced())
def test_per_cost_never_has_less_influence_per_second_than_density(
    case: tuple[dict[str, float], dict[str, int], float, bool, StepCost],
) -> None:
    norms, sizes, k, embed, cost = case
    total = sum(sizes.values())
    assume(possible(sizes, total, k, embed))
    assume(any(norm > 0 for name, norm in norms.items() if embed or name != "embed"))  # else it is refused

    def rate(picked: Picked) -> float:
        return math.fsum(norms[n] ** 2 for n in picked.submodules) / step_seconds(picked.submodules, sizes, cost)

    dense = pick(norms, sizes, total, k, by="density", embed=embed)
    found = pick(norms, sizes, total, k, by="per-cost", embed=embed, cost=cost)
    assert rate(found) >= rate(dense) * (1 - 1e-9)
    assert found == pick(norms, sizes, total, k, by="per-cost", embed=embed, cost=cost)


@given(priced(), st.sampled_from(PICKERS), st.sampled_from(["submodule", "layer"]))
def test_every_picker_keeps_to_k_and_to_whole_submodules(
    case: tuple[dict[str, float], dict[str, int], float, bool, StepCost], by: str, granularity: str
) -> None:
    norms, sizes, k, embed, cost = case
    total = sum(sizes.values())
    assume(possible(sizes, total, k, embed))
    try:
        found = pick(norms, sizes, total, k, by=by, embed=embed, cost=cost, granularity=granularity)
    except MethodError:
        reject()  # no whole layer fits
    held = sum(sizes[name] for name in found.submodules)
    assert 0 < held <= k * total * (1 + 1e-12) and found.k_reached == held / total
    assert list(found.submodules) == [name for name in sizes if name in found.submodules]
    assert embed or "embed" not in found.submodules
    if granularity == "layer":
        layers = itertools.groupby(sorted(n.split(".")[1] for n in found.submodules if "." in n))
        assert all(len(list(inside)) == 2 for _, inside in layers)


def test_an_order_by_cost_holds_every_submodule_once() -> None:
    assert sorted(rank_per_cost(NORMS, SIZES, 100, 0.3, COST, embed=False)) == sorted(SIZES)


def test_an_order_of_which_nothing_fits_is_refused_and_not_an_empty_set() -> None:
    sizes = {"attn.0": 10, "ffn.0": 50, "head": 1}
    with pytest.raises(MethodError, match=r"no room for any of ffn\.0.*Ask for a larger k"):
        fill(["ffn.0"], sizes, 100, 0.3, embed=False)


@pytest.mark.parametrize("by", PICKERS)
def test_norms_that_are_all_zero_choose_nothing(by: str) -> None:
    sizes = {"embed": 40, "attn.0": 10, "ffn.0": 50}
    zeros = {"embed": 1.0, "attn.0": 0.0, "ffn.0": 0.0}  # what may not be taken does not count
    with pytest.raises(MethodError, match="every norm is 0"):
        pick(zeros, sizes, 100, 0.6, by=by)
