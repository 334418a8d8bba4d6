"""The one filling rule of k-sets, by example and by its properties."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cprbench.blueprint.picking import check, fill
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
    with pytest.raises(MethodError, match=r"partial\.k = .* is outside \(0, 1\]"):
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
