"""The order of a board: the front first, then by score, then what does not rank."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from cprbench.judge.frontier import pareto
from cprbench.judge.submission import Row
from cprbench.render.site.columns import Listed
from cprbench.render.site.ordering import Placed, front, ordered
from tests.render.site.entries import CPU, GPU, make_entry, make_row, no, num


def placed(*rows: Row, axis: str = "flops") -> list[Placed]:
    entry = make_entry(rows=rows)
    return ordered([Listed(entry, row) for row in rows], axis)


def arms(found: Sequence[Placed]) -> list[str]:
    return [of.listed.row.arm for of in found]


def at(arm: str, psi: float | None, flops: float | None, **fields: Any) -> Row:
    return make_row(psi, flops, arm=arm, **fields)


def test_the_front_is_the_one_that_judge_defines_also_where_points_are_equal() -> None:
    draw = random.Random(0)
    for _ in range(200):
        points = [(float(draw.randint(1, 6)), float(draw.randint(1, 6))) for _ in range(draw.randint(0, 12))]
        assert front(points) == {int(name) for name in pareto({str(i): p for i, p in enumerate(points)})}


def test_the_front_comes_first_then_the_others_by_score() -> None:
    found = placed(
        at("cheap", 0.6, 1e11),
        at("dear", 0.9, 9e12),
        at("beaten", 0.85, 9.5e12),
        at("worse", 0.7, 5e12),
        at("mid", 0.8, 1e12),
    )
    assert arms(found) == ["dear", "mid", "cheap", "beaten", "worse"]
    assert [of.position for of in found] == [1, 2, 3, 4, 5]
    assert [of.front for of in found] == [True, True, True, False, False]
    assert {of.group for of in found} == {""}


def test_a_row_that_does_not_rank_beats_nothing_and_comes_last() -> None:
    found = placed(at("best", 0.99, 1e10, unranked=["a smoke test"]), at("a", 0.7, 1e12), at("b", 0.6, 2e12))
    assert arms(found) == ["a", "b", "best"]
    assert [(of.position, of.front) for of in found] == [(1, True), (2, False), (None, False)]


def test_what_was_not_measured_has_no_position_and_comes_after_all_that_was() -> None:
    off = at("off", 0.4, 1, unranked=["x"])
    found = placed(at("no cost", 0.99, None), at("no score", None, 1e9), at("a", 0.5, 1e13), at("b", 0.4, 2e13), off)
    assert arms(found) == ["a", "b", "no cost", "no score", "off"]
    assert [of.position for of in found] == [1, 2, None, None, None]


def test_a_metric_that_falls_is_better_where_it_is_lower() -> None:
    found = placed(at("a", 0.4, 1e12, metric="nll"), at("b", 0.3, 2e12, metric="nll"), at("c", 0.5, 3e12, metric="nll"))
    assert arms(found) == ["b", "a", "c"] and [of.front for of in found] == [True, True, False]


def test_what_hangs_on_the_machine_has_a_front_in_every_hardware_class() -> None:
    def row(arm: str, psi: float, hours: float, machine: str) -> Row:
        return at(arm, psi, 1e12, hardware_class=machine, gamma=make_row().gamma | {"device_hours": num(hours)})

    rows = (
        row("gpu slow", 0.8, 0.2, GPU),
        row("gpu", 0.9, 0.1, GPU),
        row("cpu", 0.7, 5.0, CPU),
        row("cpu slow", 0.6, 9.0, CPU),
    )
    found = placed(*rows, axis="device_hours")
    assert [(of.group, of.listed.row.arm, of.position, of.front) for of in found] == [
        (GPU, "gpu", 1, True),
        (GPU, "gpu slow", 2, False),
        (CPU, "cpu", 1, True),
        (CPU, "cpu slow", 2, False),
    ]
    assert arms(placed(*rows)) == ["gpu", "gpu slow", "cpu", "cpu slow"]  # FLOPs compare across all
    assert {of.group for of in placed(*rows)} == {""}


def test_versions_of_a_suite_have_fronts_of_their_own_the_newest_first() -> None:
    old = at("old", 0.95, 1e10)
    found = placed(
        old, at("new", 0.8, 1e12, suite_version=2), at("off", 0.99, 1e9, suite="other", unranked=["other ranks"])
    )
    assert [(of.group, of.listed.row.arm, of.front) for of in found] == [
        ("core v2", "new", True),
        ("core v1", "old", True),
        ("other v1", "off", False),
    ]
    assert {of.group for of in placed(old, at("too", 0.5, 1e9))} == {""}  # nothing to tell apart


def test_what_does_not_rank_of_another_version_metric_or_limit_is_in_no_group_that_ranks() -> None:
    off = {"unranked": ["a smoke test"]}
    found = placed(
        at("a", 0.7, 1e12, limits={"eval_items": 400}),
        at("b", 0.9, 1e10, limits={"eval_items": 8}, **off),
        at("c", 0.9, 1e10, limits={"eval_items": 400}, suite_version=2, **off),
        at("d", 0.9, 1e10, limits={"eval_items": 400}, metric="nll", **off),
        at("e", 0.9, 1e10, limits={"eval_items": 400}, role="smoke", **off),
    )
    assert found[0].group == "core v1, accuracy, eval_items 400" and found[0].position == 1
    assert len({of.group for of in found}) == 5


def test_divisions_have_fronts_and_positions_of_their_own_closed_first() -> None:
    closed = make_entry("first", [at("a", 0.7, 1e12), at("worse", 0.6, 2e12)])
    open_ = make_entry("second", [at("b", 0.9, 1e10)], spec={"division": "open"})
    found = ordered([Listed(entry, row) for entry in (open_, closed) for row in entry.rows])
    assert [(of.group, of.listed.row.arm, of.position, of.front) for of in found] == [
        ("core v1, closed division", "a", 1, True),
        ("core v1, closed division", "worse", 2, False),
        ("core v1, open division", "b", 1, True),
    ]


def test_two_metrics_never_share_a_front() -> None:
    found = placed(at("a", 0.9, 1e12), at("b", 0.3, 1e13, metric="nll"))
    assert [of.group for of in found] == ["core v1, accuracy", "core v1, nll"] and all(of.front for of in found)


def test_the_order_hangs_on_nothing_but_the_rows() -> None:
    rows = [at(f"arm {i % 3}", 0.5 + i % 4 / 10, 10.0 ** (10 + i % 3), settings={"i": i}) for i in range(24)]
    rows += [at("lost", None, None), at("energy", 0.8, 1e12, gamma=make_row().gamma | {"flops": no("no counter")})]
    first = [of.listed.row.id for of in placed(*rows)]
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert [of.listed.row.id for of in placed(*rows)] == first
