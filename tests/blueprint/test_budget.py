"""Budgets: what is understood, and picks that are the best possible within them."""

from __future__ import annotations

import itertools
import math
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.blueprint.budget import Budget, pick_within
from cprbench.blueprint.picking import layers_reached, step_seconds
from cprbench.blueprint.schema import StepCost
from cprbench.errors import MethodError, SpecError

SIZES = {"embed": 40, "attn.0": 10, "ffn.0": 20, "attn.1": 10, "ffn.1": 20, "head": 5}
NORMS = {"embed": 9.0, "attn.0": 4.0, "ffn.0": 5.0, "attn.1": 2.0, "ffn.1": 6.0, "head": 1.0}


def step(forward: float, per_layer: float, per_parameter: float) -> StepCost:
    return StepCost(
        forward_seconds=forward,
        backward_seconds_per_layer=per_layer,
        seconds_per_parameter=per_parameter,
        batch_size=1,
        tokens=1,
    )


@pytest.mark.parametrize(
    ("text", "memory", "share"),
    [
        ("memory=8GiB,time=0.5", 8 * 2**30, 0.5),
        ("time=1", None, 1.0),
        (" time = .25 , memory = 1.5 kB ", 1500, 0.25),
        ("memory=3B", 3, None),
        ("memory=2MB", 2_000_000, None),
        ("memory=2GB", 2_000_000_000, None),
        ("memory=2KiB", 2048, None),
        ("memory=0.5MiB", 2**19, None),
    ],
)
def test_a_budget_is_read_in_its_units(text: str, memory: int | None, share: float | None) -> None:
    assert Budget.parse(text) == Budget(memory, share)


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "memory", "memory=", "memory=8", "memory=8 gib", "memory=8TB", "memory=-8GiB", "memory=0B", "time=0",
        "time=1.1", "time=50%", "time=nan", "time=inf", "time=1e-1", "memory=1GiB,memory=2GiB", "memory=8GiB;time=0.5",
        "memory=٨GiB", "memory=" + "9" * 5000 + "B", "tim=0.5", "time=0.5,", "time=0.0000000001",
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_told_what_is_understood(text: str) -> None:
    with pytest.raises(
        SpecError, match=r'A budget is "memory=8GiB,time=0\.5".*MiB, GiB.*above 0 and at most 1'
    ) as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 500


def test_a_misspelt_limit_names_the_nearest_known_one() -> None:
    with pytest.raises(SpecError, match="Did you mean 'memory'"):
        Budget.parse("memroy=8GiB")


@pytest.mark.parametrize("limits", [(None, None), (0, None), (None, 0.0), (None, 1.5), (None, math.nan)])
def test_a_budget_that_limits_nothing_or_everything_cannot_be_made(limits: tuple[int | None, float | None]) -> None:
    with pytest.raises(SpecError):
        Budget(*limits)


def within_memory(memory: int, **more: bool) -> tuple[str, ...]:
    return pick_within(NORMS, SIZES, Budget(memory), fixed_memory_bytes=100, bytes_per_parameter=2, **more).submodules


def test_memory_is_what_is_fixed_plus_so_many_bytes_per_trained_parameter() -> None:
    assert within_memory(100 + 2 * 20) == ("ffn.1",)
    assert within_memory(100 + 2 * 20 - 1) == ("attn.0", "head")
    assert within_memory(100 + 2 * 40) == ("ffn.0", "ffn.1")
    assert within_memory(100 + 2 * 40, embed=True) == ("embed",)
    assert within_memory(10**6) == ("attn.0", "ffn.0", "attn.1", "ffn.1", "head")
    assert within_memory(10**6, embed=True) == tuple(SIZES)


def test_the_best_whole_set_is_found_where_taking_the_best_first_fails() -> None:
    sizes, norms = {"ffn.0": 6, "ffn.1": 5, "ffn.2": 5}, {"ffn.0": 2.6, "ffn.1": 2.2, "ffn.2": 2.2}
    found = pick_within(norms, sizes, Budget(10), fixed_memory_bytes=0, bytes_per_parameter=1)
    assert found.submodules == ("ffn.1", "ffn.2")
    assert found.k_reached == 10 / 16


def test_a_time_budget_trades_depth_against_parameters() -> None:
    sizes = {"ffn.0": 10, "ffn.1": 10, "ffn.2": 10}
    norms = {"ffn.0": 1.5, "ffn.1": 1.0, "ffn.2": 1.0}
    cost = step(3, 2, 0.1)  # a full step: 3 + 3 * 2 + 30 * 0.1 = 12
    assert pick_within(norms, sizes, Budget(time=10 / 12), step_cost=cost).submodules == ("ffn.0",)
    assert pick_within(norms, sizes, Budget(time=9 / 12), step_cost=cost).submodules == ("ffn.1", "ffn.2")
    assert pick_within(norms, sizes, Budget(time=6 / 12), step_cost=cost).submodules == ("ffn.2",)
    assert pick_within(norms, sizes, Budget(time=1), step_cost=cost).submodules == tuple(sizes)


def test_submodules_without_any_gradient_are_never_taken() -> None:
    norms = {**NORMS, "head": 0.0}
    found = pick_within(norms, SIZES, Budget(10**6), fixed_memory_bytes=0, bytes_per_parameter=1)
    assert "head" not in found.submodules
    with pytest.raises(MethodError, match="norm above 0"):
        pick_within(dict.fromkeys(SIZES, 0.0), SIZES, Budget(10), fixed_memory_bytes=0, bytes_per_parameter=1)


def test_a_limit_without_the_numbers_it_needs_is_refused() -> None:
    with pytest.raises(MethodError, match="asks for fixed_memory_bytes and bytes_per_parameter"):
        pick_within(NORMS, SIZES, Budget(10**6), bytes_per_parameter=1)
    with pytest.raises(MethodError, match="asks for fixed_memory_bytes and bytes_per_parameter"):
        pick_within(NORMS, SIZES, Budget(10**6), fixed_memory_bytes=1)
    for cost in (None, step(0, 0, 0)):
        with pytest.raises(MethodError, match="asks for a measured step_cost"):
            pick_within(NORMS, SIZES, Budget(time=0.5), step_cost=cost)
    with pytest.raises(MethodError, match="of another model"):
        pick_within({"ffn.0": 1}, SIZES, Budget(time=0.5), step_cost=step(1, 1, 1))


def test_a_budget_below_everything_names_the_smallest_that_would_do() -> None:
    with pytest.raises(MethodError, match=r"nothing fits into the budget.*'head' alone: memory=110B$"):
        within_memory(109)
    with pytest.raises(MethodError, match=r"'head' alone: time=0\.3334$"):  # 2 / 6: 1 + 5 * 0.2 of 1 + 2 * 1 + ...
        pick_within(
            {n: NORMS[n] for n in ("attn.0", "attn.1", "head")},
            {"attn.0": 5, "attn.1": 5, "head": 5},
            Budget(time=0.3),
            step_cost=step(1, 1, 0.2),
        )


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, int], StepCost, int, int, bool]:
    """Return (norms, sizes, cost, fixed bytes, bytes per parameter, embed) of a model of up to 12 submodules."""
    layers = draw(st.integers(1, 5))
    names = ["embed", *(f"{kind}.{i}" for i in range(layers) for kind in ("attn", "ffn")), "head"]
    size = st.integers(1, 10**9) if draw(st.booleans()) else st.sampled_from([3, 7, 8])
    sizes = {name: draw(size) for name in names}
    if draw(st.booleans()):
        norms = {name: draw(st.floats(0, 1e3)) for name in names}
    else:  # the hard kind: influence in proportion to size
        norms = {name: math.sqrt(n) for name, n in sizes.items()}
    prices = [draw(st.floats(0, 1)) for _ in range(3)]
    cost = step(prices[0] + 0.01, prices[1], prices[2] / sum(sizes.values()))
    fixed, each = draw(st.integers(0, 10**9)), draw(st.integers(0, 20))
    return norms, sizes, cost, fixed, each, draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(models(), st.floats(0.01, 1.2), st.floats(0.01, 1.2))
def test_no_set_within_a_budget_has_more_influence_and_an_error_names_one_that_works(
    model: tuple[dict[str, float], dict[str, int], StepCost, int, int, bool], memory: float, share: float
) -> None:
    norms, sizes, cost, fixed, each, embed = model
    full = step_seconds(sizes, sizes, cost)
    budget = Budget(
        max(1, int(memory * (fixed + each * sum(sizes.values())))) if memory <= 1 else None,
        share if share <= 1 else None if memory <= 1 else 1.0,
    )

    def fits(names: tuple[str, ...], slack: float) -> bool:
        spent = fixed + each * sum(sizes[name] for name in names)
        seconds = step_seconds(names, sizes, cost)
        return (budget.memory_bytes is None or spent <= budget.memory_bytes * (1 + slack)) and (
            budget.time is None or seconds <= budget.time * full * (1 + slack)
        )

    def influence(names: tuple[str, ...]) -> float:
        return math.fsum(norms[name] ** 2 for name in names)

    allowed = [name for name in sizes if (embed or name != "embed") and norms[name] > 1e-100]
    sets = [s for n in range(1, len(allowed) + 1) for s in itertools.combinations(allowed, n)]
    best = max((influence(s) for s in sets if fits(s, 0)), default=None)

    def outcome(limits: Budget) -> tuple[str, ...] | str:
        options = {"step_cost": cost, "fixed_memory_bytes": fixed, "bytes_per_parameter": each, "embed": embed}
        try:
            return pick_within(norms, sizes, limits, **options).submodules  # type: ignore[arg-type]
        except MethodError as error:
            return str(error)

    picked = outcome(budget)
    if isinstance(picked, str):
        named = re.search(r"alone: (\S+)$", picked)
        assert best is None and (named or "norm above 0" in picked)
        assert named is None or isinstance(outcome(Budget.parse(named.group(1))), tuple)
        return
    assert fits(picked, 2e-9) and picked
    assert list(picked) == [name for name in sizes if name in picked]
    assert embed or "embed" not in picked
    assert best is None or influence(picked) >= best * (1 - 1e-12)


KINDS = ("uniform", "lognormal", "in proportion to size", "size and a constant", "equal")


def two_hundred(kind: str, *, all_differ: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Return norms and sizes of a model of 99 layers, its sizes like real ones or all different."""
    draw = random.Random(7)
    names = ["embed", *(f"{part}.{i}" for i in range(99) for part in ("attn", "ffn")), "head"]
    sizes = {name: 4_000_000 if name.startswith("attn") else 11_000_000 for name in names}
    if all_differ:
        sizes = {name: draw.randint(1, 10**7) for name in names}
    norms = {
        "uniform": {name: draw.random() for name in names},
        "lognormal": {name: math.exp(2 * draw.gauss(0, 1)) for name in names},
        "in proportion to size": {name: math.sqrt(sizes[name] * (1 + draw.random() / 1000)) for name in names},
        "size and a constant": {name: math.sqrt(sizes[name] + 10**6) for name in names},
        "equal": dict.fromkeys(names, 1.0),
    }[kind]
    return norms, sizes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("all_differ", [False, True])
def test_two_hundred_submodules_take_a_moment_whatever_their_norms(kind: str, all_differ: bool) -> None:
    norms, sizes = two_hundred(kind, all_differ=all_differ)
    began = time.process_time()
    for share in (0.6, 1.0):
        found = pick_within(
            norms,
            sizes,
            Budget(int(0.3 * 16 * sum(sizes.values())), share),
            step_cost=step(1, 0.02, 1e-9),
            fixed_memory_bytes=0,
            bytes_per_parameter=16,
        )
        assert 0.05 < found.k_reached <= 0.3
    assert time.process_time() - began < (5 if kind == "size and a constant" else 1.5)  # the hard kind of textbooks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.013, 0.31, 0.777])
def test_two_hundred_submodules_of_two_sizes_are_picked_exactly(kind: str, share: float) -> None:
    norms, sizes = two_hundred(kind, all_differ=False)
    cap = int(share * sum(sizes.values()))
    found = pick_within(norms, sizes, Budget(cap), fixed_memory_bytes=0, bytes_per_parameter=1)
    # Of each size the best are taken, so the optimum is among 100 x 101 pairs of numbers.
    small, large = (
        [
            0.0,
            *itertools.accumulate(
                sorted((norms[n] ** 2 for n in sizes if n != "embed" and sizes[n] == size), reverse=True)
            ),
        ]
        for size in (4_000_000, 11_000_000)
    )
    best = max(
        a + b
        for (i, a), (j, b) in itertools.product(enumerate(small), enumerate(large))
        if i * 4_000_000 + j * 11_000_000 <= cap
    )
    assert math.fsum(norms[name] ** 2 for name in found.submodules) == pytest.approx(best, rel=1e-12)


def test_the_deepest_of_two_hundred_submodules_is_found_where_it_alone_matters() -> None:
    sizes = {f"ffn.{i}": 10**6 + i for i in range(200)}
    norms = {name: 1e3 if depth == 200 else 1e-3 for name, depth in layers_reached(sizes).items()}
    found = pick_within(norms, sizes, Budget(time=0.95), step_cost=step(1, 0.1, 1e-8))
    assert "ffn.0" in found.submodules
