"""Tables of sweeps: gain kept by share of parameters (k) and of examples (q), predicted against measured."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from cprbench.judge.cpr import Group
from cprbench.judge.groups import Figure
from cprbench.judge.retention import PREDICTIONS, Row, retention
from cprbench.judge.sweeps import Grid, Sweep
from cprbench.render import retention as page
from cprbench.render.document import Cell, Items, Part, Prose, Table
from cprbench.render.figures.sweeps import how_well
from cprbench.render.heatmap import scale
from cprbench.render.numbers import number, percent, score, with_interval
from cprbench.render.report.comparison import cell, count, interval

#: Steps of the colour scale of a grid: shares of full's gain, fixed so that pages compare by colour.
SHADES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_SHARES = {"k": "parameters trained (k)", "q": "examples trained on (q)"}
_PREDICTED = dict(zip(PREDICTIONS, ("eq. 34 on T", "eq. 34 on T²", "eq. 35"), strict=True))


def sweep_table(group: Group, share: str, found: tuple[Sweep, ...]) -> Table | None:
    """Return the table of all sweeps over one share, family by family; None without any."""
    sweeps = [sweep for sweep in found if sweep.share == share]
    if not sweeps:
        return None
    blocks = {arm.arm: len(arm.blocks) for arm in group.arms}
    rows = tuple(
        (
            Cell(point.arm),
            Cell(sweep.name),
            Cell(number(Figure(point.share)), point.share),
            interval(percent, point.kept),
            Cell(" ".join(percent(Figure(value)) for value in point.kept_by_block) or "none"),
            count(blocks[point.arm]),
        )
        for sweep in sweeps
        for point in sweep.points
    )
    return Table(
        f"{share}-sweep",
        f"Gain kept by share of {_SHARES[share]}",
        ("arm", "family", share, "retained gain", "per block", "blocks"),
        rows,
        tuple(f"{sweep.name}: {fit(sweep)}." for sweep in sweeps),
        words=(0, 1, 4),
    )


def fit(sweep: Sweep) -> str:
    """Return the fitted power of a sweep in words, or why there is none."""
    exponent = {"k": "gamma", "q": "delta"}[sweep.share]
    slope = sweep.fit.slope
    if slope.value is None:
        return f"no fit of gain = c {sweep.share}^{exponent}: {sweep.fit_why or slope.why}"
    return f"gain = c {sweep.share}^{exponent} with {exponent} = {with_interval(score, slope)}{how_well(sweep)}"


def grid_table(grid: Grid, name: str) -> Table:
    """Return the heat map of a grid of k by q: measured, and below it what the paper's equations predict."""
    ways: dict[str, Callable[[Row], Figure]] = {"measured": lambda row: row.kept}
    ways |= {title: lambda row, key=key: row.predicted[key] for key, title in _PREDICTED.items()}  # type: ignore[misc]
    rows = []
    for title, told in ways.items():
        for k in grid.ks:
            cells = (grid.cells.get((k, q)) for q in grid.qs)
            rows.append(
                (Cell(title), Cell(f"{k:g}", k), *(_shaded(None if row is None else told(row)) for row in cells))
            )
    return Table(
        name,
        f"Share of full's gain by k and q, measured and predicted: {grid.name}",
        ("share of the gain", "k", *(f"q = {q:g}" for q in grid.qs)),
        tuple(rows),
        (scale(SHADES),),
    )


def _shaded(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("not run")
    shade = None if figure.value is None else bisect_right(SHADES, figure.value)
    return Cell(page.short(percent(figure)) if figure.value is None else percent(figure), figure.value, shade)


def retention_parts(group: Group) -> tuple[Part, ...]:
    """Return the retention table with its legend, its answer and the reasons of its gaps; () where there is none."""
    found = retention(group)
    if found is None:
        return ()
    table = Table(
        "retention",
        page.TITLE,
        ("arm", *page.COLUMNS),
        tuple((Cell(row.arm), *_cells(row)) for row in found.rows),
        (page.LEGEND,),
    )
    why = page.reasons(found)
    reasons = (Items("Without a number, and why", tuple(why), folded=len(why) > 3),) if why else ()
    return (table, Prose(tuple(page.answer(found))), *reasons)


def _cells(row: Row) -> tuple[Cell, ...]:
    return tuple(
        Cell(page.short(show(figure(row))), figure(row).value) if figure(row).value is None else cell(show, figure(row))
        for figure, show in page.COLUMNS.values()
    )
