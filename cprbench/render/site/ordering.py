"""The order of a board: the Pareto front of score against one resource first, then by score. There is no scalar score.

What may not be compared is in groups of its own, each with its own front: suite versions, metrics, limits, divisions
and, for resources that hang on the machine, hardware classes. templates/site/rows.js orders by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cprbench.judge.submission import Row
from cprbench.render.site.columns import COUNTED, Listed, division, entry_name, settings_text, suite_of
from cprbench.spec import falls


@dataclass(frozen=True)
class Placed:
    """Where a row stands: the title of its group ("" where there is one group), its position, whether on the front."""

    listed: Listed
    group: str
    position: int | None  # None: it does not rank, or lacks the score or the cost
    front: bool


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Return the indices of the (cost, score) that no other beats, as judge.frontier.pareto defines it.

    Equal points are on it together. Sorted, because a board may have thousands of rows.
    """
    found: set[int] = set()
    best, at = -math.inf, (math.inf, math.inf)
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best or points[i] == at:
            best, at = points[i][1], points[i]
            found.add(i)
    return found


def _scales(rows: Sequence[Listed]) -> list[str]:
    """Return within what the score of every row compares: its suite version, and what else differs between rows.

    "" for all where nothing does. Rows that do not rank count too: they are drawn beside those that do.
    """
    metrics, divisions = {of.row.metric for of in rows}, {division(of) for of in rows}
    limits: dict[str, set[str]] = {}
    for of in rows:
        limits.setdefault(suite_of(of.row), set()).add(limits_text(of.row))

    def scale(of: Listed) -> str:
        parts = [suite_of(of.row)]
        parts += [of.row.metric] if len(metrics) > 1 else []
        parts += [limits_text(of.row)] if len(limits[parts[0]]) > 1 else []
        parts += [f"{of.row.role} runs"] if of.row.role != "run" else []
        return ", ".join([*parts, f"{division(of)} division"] if len(divisions) > 1 else parts)

    found = [scale(of) for of in rows]
    return found if len(set(found)) > 1 else [""] * len(found)


def limits_text(row: Row) -> str:
    """Return a row's limits in a line."""
    return settings_text(row.limits) or "no limits"


def score_and_cost(row: Row, axis: str) -> tuple[float, float] | None:
    """Return (cost, score turned so that more is better), None where a row lacks one."""
    cost = row.gamma.get(axis)
    if cost is None or cost.value is None or row.psi.value is None:
        return None
    return cost.value, -row.psi.value if falls(row.metric) else row.psi.value


def ordered(rows: Sequence[Listed], axis: str = COUNTED) -> list[Placed]:
    """Return rows in the order of their board, whatever order they come in.

    In every group: the front, the other rows that rank, those that lack score or cost, those that do not rank. Groups
    with rows that rank come first.
    """
    groups: dict[str, list[Listed]] = {}
    for listed, scale in zip(rows, _scales(rows), strict=True):
        machine = listed.row.hardware_class if axis != COUNTED else ""
        groups.setdefault(" · ".join(filter(None, (scale, machine))), []).append(listed)

    def first(title: str) -> tuple[bool, str, int, bool, str]:
        of = groups[title][0]
        suite = (of.row.suite, -(of.row.suite_version or 0), division(of) == "open") if title else ("", 0, False)
        return not any(of.row.ranked for of in groups[title]), *suite, title

    return [placed for title in sorted(groups, key=first) for placed in _within(groups[title], title, axis)]


def _within(rows: Sequence[Listed], title: str, axis: str) -> list[Placed]:
    points = {i: point for i, of in enumerate(rows) if of.row.ranked and (point := score_and_cost(of.row, axis))}
    known = list(points)
    on = {known[j] for j in front(list(points.values()))}

    def key(i: int) -> tuple[object, ...]:
        row = rows[i].row
        tier = 3 if not row.ranked else 2 if i not in points else i not in on
        psi, cost = row.psi.value, row.gamma[axis].value if axis in row.gamma else None
        score = math.inf if psi is None else psi if falls(row.metric) else -psi
        return tier, score, math.inf if cost is None else cost, row.arm, entry_name(rows[i].entry), row.id

    order = sorted(range(len(rows)), key=key)
    return [Placed(rows[i], title, n if i in points else None, i in on) for n, i in enumerate(order, 1)]
