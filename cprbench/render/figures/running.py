"""Validation psi over what was spent so far, with the point where a rule stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cprbench.judge.cpr import Group
from cprbench.judge.curves import curve
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import Figure as Number
from cprbench.judge.groups import ended_well, runs_by_arm
from cprbench.render.document import Drawing
from cprbench.render.figures.style import (
    IN_LEGEND,
    INK,
    WIDE,
    Look,
    label,
    legend,
    legend_inches,
    listed,
    looks_singly,
    mark,
    scale,
)
from cprbench.render.numbers import number, resource_title, score
from cprbench.spec import RunRecord, falls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 12
_Line = tuple[tuple[float, float], ...]  # (cost so far, psi in its natural sign)


def running(group: Group, evidence: Evidence, resource: str = "flops") -> Drawing | None:
    """Return validation psi over billed cost so far, a line per arm; None where no history has both.

    Blocks that were validated as often are one line of means, others a thin line each. Arms that end at a budget are
    left out where others are drawn besides full and head: they repeat the beginnings of others. All data first, head
    last, and no more arms than a reader can tell.
    """
    lines: dict[str, list[_Line]] = {}
    stops: dict[str, list[tuple[float, float]]] = {}
    ending: dict[str, None] = {}  # at a budget
    for name, runs in runs_by_arm(group.records).items():
        for record in ended_well(runs).values():
            line, stop = _line(record, evidence, group.metric, resource)
            if len(line) > 1:
                lines.setdefault(name, []).append(line)
                stops.setdefault(name, []).extend(stop)
                ending |= {} if record.spec.budget is None else {name: None}
    if not set(lines).difference(ending) <= {"full", "head"}:
        lines = {name: of for name, of in lines.items() if name not in ending}
    repeated = [name for name in ending if name not in lines]
    chosen = {r.arm: r.spec.selection.name not in ("all", "external") for r in group.records}
    able = sorted((a.arm for a in group.arms if a.arm in lines), key=lambda n: (n == "head", chosen.get(n, False)))
    arms, rest = able[:_MOST], able[_MOST:]
    if not arms:
        return None
    style = looks_singly(group.arms, arms)
    labels = [label(name, IN_LEGEND) for name in arms]
    unit = resource_title(resource)
    stopped = [name for name in arms if stops[name]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name in arms:
            look, of = style[name], _means(lines[name])
            for line in of:
                axes.plot(
                    *zip(*line, strict=True),
                    color=look.colour,
                    linestyle=look.dash,
                    linewidth=1.4 if len(of) == 1 else 0.7,
                    marker=look.marker,
                    markersize=4 if len(of) == 1 else 2.5,
                )
            if stops[name]:
                axes.plot(*zip(*stops[name], strict=True), "o", color=INK, markersize=10, markerfacecolor="none")
        scale(axes, "x", [cost for name in arms for line in lines[name] for cost, _ in line])
        axes.set_xlabel(f"billed {unit} so far")
        axes.set_ylabel(
            f"validation {label(group.metric, 24, 1)}" + (" (lower is better)" if falls(group.metric) else "")
        )
        handles = [mark(style[name], text, line=True) for name, text in zip(arms, labels, strict=True)]
        handles += [mark(Look(INK, "o", "-"), "a rule stopped here", hollow=True)] if stopped else []
        legend(figure, handles)

    ends = []
    for name in arms:
        of = _means(lines[name])
        told = [f"{score(Number(line[-1][1]))} after {number(Number(line[-1][0]))}" for line in of]
        where = [f"{score(Number(psi))} after {number(Number(cost))}" for cost, psi in stops[name]]
        ends.append(f"{name}: {', '.join(told)}" + (f", stopped by its rule at {', '.join(where)}" if where else ""))
    words = [f"Validation {group.metric} over billed {unit} so far, a line per arm. At the end: {'; '.join(ends)}."]
    if rest:
        words.append(f"Not drawn, for more lines cannot be told apart: {listed(rest)}.")
    if repeated:
        words.append(f"Left out, for they end at a budget and repeat the beginnings of others: {listed(repeated)}.")
    high = 3.0 + legend_inches([*labels, *(["stop"] if stopped else [])])
    return Drawing("running", f"Validation {group.metric} while training", " ".join(words), draw, (WIDE, high))


def _line(record: RunRecord, evidence: Evidence, metric: str, resource: str) -> tuple[_Line, list[tuple[float, float]]]:
    """Return the validations of a run that have cost and psi, and the one at which a rule stopped it."""
    rows = evidence.validations(record)
    sign = -1.0 if falls(metric) else 1.0  # curve() turns psi so that higher is better
    told = record.notes.get("stop")
    at = told.get("stopped_at") if isinstance(told, Mapping) else None
    found = [
        (cost, sign * psi, row.get("step"))
        for (cost, psi), row in zip(curve(rows, metric, resource), rows, strict=True)
        if cost is not None and psi is not None
    ]
    stop = [(cost, psi) for cost, psi, step in found if at is not None and step == at]
    return tuple((cost, psi) for cost, psi, _ in found), stop


def _means(lines: list[_Line]) -> list[_Line]:
    """Return the line of means over blocks where all were validated as often, else the lines as they are."""
    if len({len(line) for line in lines}) > 1:
        return lines
    points = zip(*lines, strict=True)
    return [tuple((sum(c for c, _ in at) / len(at), sum(psi for _, psi in at) / len(at)) for at in points)]
