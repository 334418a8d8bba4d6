"""The plane of a board: what stands in it, where, and how it is told in words."""

from __future__ import annotations

import re

import pytest

from cprbench.render.figures.style import METHODS, method_looks
from cprbench.render.site import boards_of, plot
from tests.render.site.entries import GPU, make_entry, make_row


def board(*rows: object, **fields: object) -> str:
    (found,) = boards_of([make_entry(rows=rows, **fields)])  # type: ignore[arg-type]
    return found.page(1).decode()


def marks(page: str) -> dict[str, tuple[str, float, float]]:
    """Return row -> (mark, x, y)."""
    found = re.findall(r'<a id="p-(\w+)".*?<use href="#(\w+)" x="([\d.]+)" y="([\d.]+)"/>', page)
    return {row: (mark, float(x), float(y)) for row, mark, x, y in found}


def test_a_mark_stands_where_its_score_and_its_cost_are_and_is_hollow_where_its_row_does_not_rank() -> None:
    cheap, dear = make_row(0.7, 1e11, arm="head"), make_row(0.9, 1e13, arm="full")
    off, lacking = make_row(0.8, 1e12, arm="lora", unranked=["x"]), make_row(0.8, None, arm="bitfit")
    page = board(cheap, dear, off, lacking)
    found = marks(page)
    assert set(found) == {cheap.id, dear.id, off.id}
    assert found[off.id][0].startswith("mh") and found[cheap.id][0].startswith("mk")
    (_, x0, y0), (_, x1, y1), (_, x2, y2) = (found[row.id] for row in (cheap, off, dear))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1  # logarithmic: a decade each
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y1
    assert f'<path d="M{x0} {y0}H{x2}V{y2}H398"/>' in page  # the front goes past what does not rank
    assert "Not drawn: 1 row without a score or FLOPs." in page


def test_the_plane_is_of_one_group_alone() -> None:
    new, old = make_row(0.7, 1e11, suite_version=2), make_row(0.9, 1e12)
    page = board(new, old)
    assert set(marks(page)) == {new.id} and "against billed FLOPs per run (core v2)" in page
    smoke = board(make_row(0.7, 1e11), make_row(0.9, 1e12, suite="", suite_version=None, unranked=["a smoke test"]))
    assert len(marks(smoke)) == 1 and "(core v1)" in smoke
    both = board(new, make_row(0.9, 1e12, suite_version=2, hardware_class=GPU))
    assert len(marks(both)) == 2  # FLOPs compare across machines


def test_a_board_without_costs_has_no_plane_and_is_whole() -> None:
    page = board(make_row(0.7, None), make_row(None, 1e12))
    assert "<figure" not in page and page.count("<tr id=") == 2


def test_a_method_has_the_colour_and_the_mark_that_reports_give_it() -> None:
    looks = plot.looks_of([*METHODS, "mine"])
    for method, look in method_looks([*METHODS, "mine"]).items():
        assert plot.LOOKS[looks[method]] == (plot._PATHS[look.marker], look.colour)
    assert plot.looks_of(["lora"]) == {"lora": looks["lora"]}


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e11, 1e13, ["10¹¹", "10¹²", "10¹³"]),
        (2e12, 9e12, ["2×10¹²", "5×10¹²"]),
        (5.2e12, 5.9e12, ["5×10¹²", "5.25×10¹²", "5.5×10¹²", "5.75×10¹²", "6×10¹²"]),
        (3e-4, 2e-2, ["0.001", "0.01"]),
    ],
)
def test_an_axis_has_a_few_round_labels(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in plot.across([low, high], logarithmic=True).ticks()] == labels


def test_a_single_value_has_an_axis_too() -> None:
    for axis in (plot.across([1e12], logarithmic=True), plot.across([0.0], logarithmic=False), plot.upwards([0.8])):
        assert axis.low < axis.high and axis.ticks()
