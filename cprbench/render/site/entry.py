"""The page of one submission: its file, what was found, its rows with every run behind them. No rank is on it, so it
changes only when its entry does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cprbench.judge.groups import NOT_MEASURED, Figure, Told
from cprbench.judge.submission import RUNS_FOLDER, Entry, Row, RunLine
from cprbench.render.numbers import in_words, number, resource_title, score
from cprbench.render.site import plot
from cprbench.render.site.columns import AXES, COLUMNS, Shown, board_name, entry_name, settings_text, shown, suite_of
from cprbench.render.site.templates import page
from cprbench.spec import PHASES

STATUS = {
    "consistent": "All that a board shows of it was computed again from its raw files, and agrees.",
    "unverified": "Something that ranks could not be computed again: the rows that it touches do not rank.",
    "contradicted": "Its own raw files say otherwise, so nothing of it ranks.",
    "invalid": "It cannot be read, or holds what no submission holds, so nothing of it is on a board.",
}
_PHASES = (*PHASES, "billed")
_WIDE_OPEN = 10_000  # letters: settings are told in full


def entry_path(entry: Entry) -> str:
    """Return the path of its page in the site."""
    return f"entries/{entry_name(entry)}/index.html"


def entry_page(entry: Entry) -> bytes:
    """Return the page of an entry; it hangs on nothing else."""
    spec = entry.submission
    facts = [] if spec is None else [("authors", ", ".join(spec.authors)), ("licence", spec.license)]
    facts += [] if spec is None else [("division", spec.division)]
    told = {
        "name": entry_name(entry),
        "status": entry.status,
        "told": STATUS[entry.status],
        "facts": [*facts, ("rows", str(len(entry.rows))), ("ranked", str(sum(row.ranked for row in entry.rows)))],
        "links": [] if spec is None else spec.links,
        "description": [] if spec is None else [line for line in spec.description.split("\n") if line.strip()],
        "findings": entry.findings,
        "zip": f"{entry_name(entry)}.zip" if entry.zipped else "",
        "checked": [f"{code}: {n} file{'s' * (n != 1)}" for code, n in sorted(entry.checked.items())],
    }
    rows = sorted(entry.rows, key=lambda row: (row.task, row.task_version, row.model, row.arm, row.id))
    units = [resource_title(name) for name in AXES]
    folder = f"leaderboard/submissions/{entry_name(entry)}/{RUNS_FOLDER}"
    shown_rows = [_row(row, folder) for row in rows]
    return page("entry.html", "../../", entry=told, rows=shown_rows, phases=_PHASES, units=units)


def _row(row: Row, folder: str) -> dict[str, Any]:
    columns = {column.key: column for column in COLUMNS}
    numbers = [column for column in COLUMNS if column.told is not None and not column.resource]
    titles = {"psi": f"psi: {row.metric}", "gain": f"gain over {row.reference}"}

    def told(key: str) -> Shown:
        return columns[key].number(row)

    return {
        "id": row.id,
        "arm": row.arm,
        "model": row.model,
        "hardware": row.hardware_class,
        "tier": row.tier,
        "unranked": row.unranked,
        "baseline": row.baseline,
        "board": {"name": board_name(row.task, row.task_version), "title": f"{row.task} v{row.task_version}"},
        "brief": [told("psi"), told("gain"), told("gamma_flops"), told("blocks")],
        "facts": list(_facts(row)),
        "numbers": [
            *((titles.get(column.key, column.title), told(column.key)) for column in numbers),
            ("seconds", shown(row.seconds, number)),
        ],
        "resources": [
            (resource_title(r), told(f"gamma_{r}"), told(f"multiple_{r}"), in_words(row.quadrant.get(r, NOT_MEASURED)))
            for r in AXES
        ],
        "curve": _curve(row),
        "runs": [_run(run) for run in row.runs],
        "provenance": list(_provenance(row)),
        "commands": [f"cprbench reproduce {folder}/{run.run_id}" for run in row.runs],
    }


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    blocks = ", ".join(map(str, row.blocks)) or "none"
    yield "method", ": ".join(filter(None, (row.method, settings_text(row.settings, _WIDE_OPEN))))
    yield "selection", ": ".join(filter(None, (row.selection, settings_text(row.selection_settings, _WIDE_OPEN))))
    yield "suite", suite_of(row) + (f" ({limits})" if (limits := settings_text(row.limits)) else "")
    yield "hardware class", row.hardware_class
    yield "picker", row.picker or "none: all submodules train, or adapters"
    yield "blocks", blocks + (f"; {row.failed} failed" if row.failed else "")
    yield "search", f"{row.trials} trials" if row.trials else "no trials"
    yield "tier", row.tier


def _run(run: RunLine) -> dict[str, Any]:
    def cell(value: float | None, show: Callable[[Told], str] = number) -> Shown:
        return shown(Figure(value), show)

    rate = cell(run.learning_rate)
    return {
        "id": run.run_id,
        "block": run.block,
        "status": run.status,
        "cells": [
            cell(run.base, score),
            cell(run.psi, score),
            *(cell(run.seconds.get(phase)) for phase in _PHASES),
            *(cell(run.gamma.get(name)) for name in AXES),
            replace(rate, small=run.learning_rate_from) if rate.value is not None else Shown("not told"),
        ],
    }


def _curve(row: Row) -> dict[str, Any] | None:
    """Return the score on the validation split over billed FLOPs, a line per run; None where no run has one."""
    curves = [(run.block, sorted(run.curve)) for run in row.runs if run.curve]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return None
    x = plot.across([cost for cost, _ in points], logarithmic=False)
    y = plot.upwards([psi for _, psi in points])
    lines = ["M" + "L".join(f"{x.at(cost)} {y.at(psi)}" for cost, psi in curve) for _, curve in curves]
    ends = [(x.at(curve[-1][0]), y.at(curve[-1][1]), _end(block, curve)) for block, curve in curves]
    title = f"{row.metric} on the validation split, over billed FLOPs"
    return {
        "title": title,
        "text": f"{title}. " + "; ".join(_end(block, curve) for block, curve in curves) + ".",
        "lines": lines,
        "ends": ends,
        **{"x": x, "y": y, "wide": plot.WIDE, "high": plot.HIGH, "left": plot.LEFT, "right": plot.WIDE - plot.RIGHT},
        **{"top": plot.TOP, "bottom": plot.HIGH - plot.BOTTOM},
    }


def _end(block: int, curve: Sequence[tuple[float, float]]) -> str:
    (first, start), (last, end) = curve[0], curve[-1]
    at = [number(Figure(cost)) for cost in (first, last)]
    return f"block {block} goes from {start:.3f} at {at[0]} to {end:.3f} at {at[1]} FLOPs"


def _provenance(row: Row) -> Iterator[tuple[str, str]]:
    yield "weights sha256", row.weights_sha256 or "not seen"
    yield "data sha256", row.data_sha256 or "not seen"
    yield "commit", _by_run(row, lambda run: run.commit or "not told")
    yield "working tree", _by_run(row, lambda run: {None: "not told", True: "changed", False: "clean"}[run.dirty])
    yield "packages", _by_run(row, lambda run: _packages(run.packages))


def _packages(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) or "not told"


def _by_run(row: Row, tell: Callable[[RunLine], str]) -> str:
    """Return what all runs say, once where they agree."""
    said: dict[str, list[str]] = {}
    for run in row.runs:
        said.setdefault(tell(run), []).append(run.run_id)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{text} ({', '.join(ids)})" for text, ids in said.items()) or "no runs"
