"""The pages of one task version: what its template is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from cprbench.judge.submission import Entry
from cprbench.render.numbers import number, percent, resource_title, score, signed
from cprbench.render.site import plot
from cprbench.render.site.columns import (
    AXES,
    COLUMNS,
    COUNTED,
    NUMBERS,
    Column,
    Listed,
    Shown,
    board_name,
    cut,
    division,
    entry_name,
    in_gb,
    settings_text,
    shown,
    suite_of,
)
from cprbench.render.site.ordering import Placed, limits_text, ordered, score_and_cost
from cprbench.render.site.templates import page
from cprbench.render.text import plain
from cprbench.schema import canonical_json
from cprbench.spec import falls

ROWS_ON_A_PAGE = 200
#: What rows.js filters and groups by, in the order of a row's data-f.
FACETS = (
    *("suite", "model", "method", "selection", "hardware", "tier", "division", "submission"),
    *("scale", "weights", "arm", "settings", "flags", "look", "metric", "limits", "role"),
)
_MOST_IN_LEGEND = 12
_MOST_NAMED = 8
_MARKS = "Dashed: the Pareto front. Hollow: does not rank. A mark leads to its row, a position to its mark."


@dataclass(frozen=True)
class Board:
    """One task version with its rows in their order."""

    task: str
    version: int
    placed: tuple[Placed, ...]

    @property
    def name(self) -> str:
        """What it is called in paths."""
        return board_name(self.task, self.version)

    @property
    def title(self) -> str:
        """What it is called on pages."""
        return f"{cut(self.task)} v{self.version}"

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that its scores are in."""
        return sorted({of.listed.row.metric for of in self.placed})

    @cached_property
    def references(self) -> list[str]:
        """What its gains are over."""
        return sorted({of.listed.row.reference for of in self.placed})

    @cached_property
    def facets(self) -> list[list[str]]:
        """What its rows are filtered and grouped by, in the order of FACETS."""
        return [_facets(self, of) for of in self.placed]

    @cached_property
    def looks(self) -> dict[str, int]:
        """The mark of every method."""
        return plot.looks_of(of.listed.row.method for of in self.placed)

    @property
    def ranked(self) -> int:
        """How many rows rank."""
        return sum(of.listed.row.ranked for of in self.placed)

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return max(1, -(-len(self.placed) // ROWS_ON_A_PAGE))

    def page(self, which: int) -> bytes:
        """Return its page of that number, from 1 on."""
        start = (which - 1) * ROWS_ON_A_PAGE
        some = self.placed[start : start + ROWS_ON_A_PAGE]
        drawn = _plot(self, some)
        points = {point["id"] for point in drawn["points"]} if drawn else set()
        paths = [page_path(i) for i in range(1, self.pages + 1)]
        part = f"Rows {start + 1} to {start + len(some)} of {len(self.placed)}"
        return page(
            "board.html",
            "../",
            board={"title": self.title, "name": self.name, "lead": _lead(self), "order": _order(self)},
            columns=list(_headings(self)),
            ticks=_ticks(),
            axes=[{"name": name, "title": resource_title(name)} for name in AXES],
            selects=_selects(self),
            facets=" ".join(FACETS),
            plot=drawn,
            page={
                "number": which,
                "told": part if self.pages > 1 else _rows(len(self.placed)),
                "others": " ".join(path for i, path in enumerate(paths, 1) if i != which),
                "links": [{"number": i, "href": path, "text": i} for i, path in enumerate(paths, 1)],
                "groups": [
                    {
                        "title": cut(title),
                        "rows": [_row(self, i, self.placed[i].listed.row.id in points) for i in places],
                    }
                    for title, places in groupby(range(start, start + len(some)), lambda i: self.placed[i].group)
                ],
            },
        )


def boards_of(entries: Sequence[Entry]) -> list[Board]:
    """Return a board per task version that has rows, in the order of their names, whatever order entries come in."""
    found: dict[tuple[str, int], list[Listed]] = {}
    for entry in entries:
        for row in entry.rows:
            found.setdefault((row.task, row.task_version), []).append(Listed(entry, row))
    return [Board(*key, tuple(ordered(rows))) for key, rows in sorted(found.items())]


def page_path(number: int) -> str:
    """Return the name of a board's page."""
    return "index.html" if number == 1 else f"page-{number}.html"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _psi(board: Board) -> str:
    return cut(board.metrics[0]) if len(board.metrics) == 1 else "psi"


def _lead(board: Board) -> str:
    submissions = len({entry_name(of.listed.entry) for of in board.placed})
    better = " or ".join(sorted({"lower" if falls(metric) else "higher" for metric in board.metrics}))
    blocks = "A row is one arm over its blocks, on one hardware class, of one submission."
    return (
        f"{_rows(len(board.placed))} of {submissions} submission{'s' * (submissions != 1)}, {board.ranked} of them "
        f"ranked. psi is {cut(', '.join(board.metrics))}, {better} is better. {blocks}"
    )


def _order(board: Board) -> str:
    split = " What differs in suite version, metric, limits or division never shares a front or positions."
    split = split if any(of.group for of in board.placed) else ""
    return (
        f"First the Pareto front of {_psi(board)} against FLOPs, then the other rows by {_psi(board)}, at last those "
        f"that do not rank.{split} There is no single score. Intervals are of 95 %."
    )


def _headings(board: Board) -> Iterator[dict[str, Any]]:
    """Yield what the template is told of each column."""
    seen: set[str] = set()
    for column in COLUMNS:
        title = column.title
        if column.key == "psi" and len(board.metrics) == 1:
            title = f"psi: {_psi(board)}"
        if column.key == "gain" and len(board.references) == 1:
            title = f"gain over {cut(board.references[0])}"
        first = column.first
        if column.key == "psi" and all(map(falls, board.metrics)):
            first = "ascending"
        yield {
            "key": column.key,
            "title": title,
            "meaning": column.meaning,
            "meaning_first": column.meaning not in seen,
            "number": NUMBERS.index(column) if column in NUMBERS else None,
            "first": first,
            "needs": column.needs,
            "show": {percent: "percent", score: "score", signed: "signed", in_gb: "gb"}.get(column.show, ""),
        }
        seen.add(column.meaning)


def _ticks() -> list[dict[str, Any]]:
    """Return the boxes that choose columns: one for a family that follows the resource."""
    names = {"multiple": "multiple of full", "quadrant": "quadrant"}
    found = {c.group: c for c in COLUMNS if c.key not in ("arm", "submission")}
    return [{"key": key, "title": names.get(key, c.title), "default": c.default} for key, c in found.items()]


def _selects(board: Board) -> list[dict[str, Any]]:
    """Return what rows are filtered and grouped by, with all values of the whole board."""
    titles = {"hardware": "hardware class", "suite": "suite version"}
    found: list[dict[str, Any]] = []
    for name in ("suite", "model", "method", "selection", "hardware", "tier", "division"):
        values = sorted({row[FACETS.index(name)] for row in board.facets})
        options = [(value, value) for value in values]
        found.append({"name": name, "title": titles.get(name, name), "all": "all", "options": options})
    kinds = [("ranked", "ranked only"), ("baseline", "baselines only"), ("method", "without baselines")]
    groups = [(name, titles.get(name, name)) for name in ("model", "hardware", "suite", "submission")]
    found.append({"name": "kind", "title": "rows", "all": "all", "options": kinds})
    found.append({"name": "group", "title": "group by", "all": "nothing", "options": groups})
    return found


def _facets(board: Board, of: Placed) -> list[str]:
    row = of.listed.row
    flags = "r" * row.ranked + "b" * row.baseline + "d" * falls(row.metric)
    settings = f"{settings_text(row.settings)} {settings_text(row.selection_settings)}"
    found = {
        "suite": suite_of(row),
        "model": row.model,
        "method": row.method,
        "selection": row.selection,
        "hardware": row.hardware_class,
        "tier": row.tier,
        "division": division(of.listed),
        "submission": entry_name(of.listed.entry),
        "scale": of.group,
        "weights": (row.weights_sha256 or "")[:16],
        "arm": row.arm,
        "settings": settings,
        "flags": flags,
        "look": str(board.looks[row.method]),
        "metric": row.metric,
        "limits": limits_text(row),
        "role": row.role,
    }
    return [cut(plain(found[name])) for name in FACETS]


def _row(board: Board, place: int, point: bool) -> dict[str, Any]:
    of = board.placed[place]
    row = of.listed.row
    more = f" (and {len(row.unranked) - 1} more)" if len(row.unranked) > 1 else ""
    values = [column.told(row).value for column in NUMBERS if column.told is not None]
    return {
        "id": row.id,
        "position": of.position,
        "front": of.front,
        "point": point,
        "baseline": row.baseline,
        "unranked": [cut(why) + more for why in row.unranked[:1]],
        "href": f"../entries/{entry_name(of.listed.entry)}/index.html#r-{row.id}",
        "numbers": json.dumps([*values, row.psi.low, row.psi.high], separators=(",", ":")),
        "facets": canonical_json(board.facets[place]),
        "cells": [_cell(board, column, of.listed) for column in COLUMNS],
    }


def _cell(board: Board, column: Column, listed: Listed) -> Shown:
    cell, row = column.cell(listed), listed.row
    if column.key == "gain" and not cell.none and len(board.references) > 1:
        return replace(cell, text=f"over {cut(row.reference)} {cell.text}")
    if column.key == "blocks" and row.failed:
        return replace(cell, small=f"{row.failed} failed")
    if column.key == "search" and row.trials:
        return replace(cell, small=f"{row.trials} trial{'s' * (row.trials != 1)}")
    return cell


def _plot(board: Board, some: Sequence[Placed]) -> dict[str, Any] | None:
    """Return the plane of score and FLOPs of a page's rows, of its first group alone; None where none has both."""
    title = some[0].group if some else ""
    group = [of for of in board.placed if of.group == title]
    points = {of.listed.row.id: at for of in group if (at := _at(of)) is not None}
    own = [of for of in some if of.listed.row.id in points]
    if not own:
        return None
    on = [of for of in group if of.front and of.listed.row.id in points]
    drawn = {of.listed.row.id: points[of.listed.row.id] for of in (*own, *on)}
    x = plot.across([cost for cost, _ in drawn.values()], logarithmic=True)
    y = plot.upwards([psi for _, psi in drawn.values()])
    unit, psi = resource_title(COUNTED), cut(group[0].listed.row.metric)
    used = {of.listed.row.method: board.looks[of.listed.row.method] for of in group}
    shown_ = sorted(used, key=lambda method: (used[method], method))
    return {
        "title": f"{psi} against billed {unit} per run" + (f" ({cut(title)})" if title else ""),
        "text": _told(own, on, len([of for of in some if of.group == title]), unit),
        "metric": psi,
        "unit": f"billed {unit} per run, logarithmic",
        "usual": _MARKS,
        "x": x,
        "y": y,
        "looks": [
            {"index": i, "path": plot.LOOKS[i][0], "colour": plot.LOOKS[i][1]}
            for i in sorted(set(board.looks.values()))
        ],
        "legend": [{"index": used[method], "method": cut(method)} for method in shown_[:_MOST_IN_LEGEND]],
        "fronts": [plot.steps(x, y, [points[of.listed.row.id] for of in on])] if on else [],
        "points": [
            {
                "id": of.listed.row.id,
                "x": x.at(points[of.listed.row.id][0]),
                "y": y.at(points[of.listed.row.id][1]),
                "look": board.looks[of.listed.row.method],
                "ranked": of.listed.row.ranked,
                "front": of.front,
                "title": _point(of, unit),
            }
            for of in own
        ],
        **{"wide": plot.WIDE, "high": plot.HIGH, "left": plot.LEFT, "right": plot.WIDE - plot.RIGHT},
        **{"top": plot.TOP, "bottom": plot.HIGH - plot.BOTTOM},
    }


def _at(of: Placed) -> tuple[float, float] | None:
    """Return (cost, score) in the metric's own direction; None without one, or with a cost that has no logarithm."""
    row = of.listed.row
    found = score_and_cost(row, COUNTED)
    return None if found is None or found[0] <= 0 else (found[0], row.psi.value or 0.0)


def _point(of: Placed, unit: str) -> str:
    row = of.listed.row
    psi = shown(row.psi, score)
    return (
        f"{cut(row.arm)}, {cut(row.model)}: {psi.text} {psi.small}".rstrip()
        + f" at {number(row.gamma[COUNTED])} {unit}"
    )


def _told(own: Sequence[Placed], on: Sequence[Placed], rows: int, unit: str) -> str:
    words = []
    if on:
        more = f" and {len(on) - _MOST_NAMED} more" if len(on) > _MOST_NAMED else ""
        words.append(f"On the front: {'; '.join(_point(of, unit) for of in on[:_MOST_NAMED])}{more}.")
    if rows > len(own):
        words.append(f"Not drawn: {_rows(rows - len(own))} without a score or {unit}.")
    return " ".join(words)
