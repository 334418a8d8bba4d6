"""A board for other programs and for papers: CSV, JSON, LaTeX. Numbers are exact, units are in the names."""

from __future__ import annotations

from collections.abc import Sequence

from cprbench.judge.submission import Number
from cprbench.render.document import Cell, Report, Section, Table
from cprbench.render.formats import latex, tidy
from cprbench.render.site.columns import COLUMNS, COUNTED, NUMBERS, Column, Listed, division, entry_name
from cprbench.render.site.ordering import Placed
from cprbench.schema import canonical_json
from cprbench.spec import RESOURCES

#: Columns of the table for papers: what fits a page. It has the first rows of a board that rank.
_PRINTED = (
    *("arm", "model", "selection", "psi", "gain", "retained_gain", f"gamma_{COUNTED}", f"multiple_{COUNTED}"),
    *("blocks", "hardware", "suite", "tier", "submission"),
)
MOST_PRINTED = 200


def rows(placed: Sequence[Placed]) -> list[tidy.Row]:
    """Return a row per row of the board, all with the same columns; what was not measured is None, `why` says why.

    Settings, reasons and lists are compact JSON. position and front are by FLOPs.
    """
    return [_row(of) for of in placed]


def _row(of: Placed) -> tidy.Row:
    row, told = of.listed.row, dict[str, Number]()
    for column in NUMBERS:
        assert column.told is not None
        told[_NAMES.get(column.key, column.key)] = column.told(row)
    found: tidy.Row = {
        "position": of.position,
        "front": of.front,
        "ranked": row.ranked,
        "unranked": canonical_json(row.unranked),
        "submission": entry_name(of.listed.entry),
        "division": division(of.listed),
        "row": row.id,
        "suite": row.suite,
        "suite_version": row.suite_version,
        "limits": canonical_json(row.limits),
        "task": row.task,
        "task_version": row.task_version,
        "domain": row.domain,
        "model": row.model,
        "weights_sha256": row.weights_sha256,
        "arm": row.arm,
        "method": row.method,
        "method_settings": canonical_json(row.settings),
        "selection": row.selection,
        "selection_settings": canonical_json(row.selection_settings),
        "baseline": row.baseline,
        "hardware_class": row.hardware_class,
        "metric": row.metric,
        "reference": row.reference,
        "tier": row.tier,
        "picker": row.picker,
        "failed": row.failed,
        "search_trials": row.trials,
        "run_ids": canonical_json([run.run_id for run in row.runs]),
        **{f"quadrant_{name}": row.quadrant.get(name) for name in RESOURCES},
    }
    for name, number in told.items():
        found[name] = number.value
        if name in _WITH_INTERVAL:
            found |= {f"{name}_low": number.low, f"{name}_high": number.high}
    found["why"] = canonical_json({name: number.why for name, number in told.items() if number.value is None})
    return found


_NAMES = {"search": "search_seconds"}
_WITH_INTERVAL = {"psi", "gain", "retained_gain", *(f"multiple_{name}" for name in RESOURCES)}


def csv_file(placed: Sequence[Placed]) -> bytes:
    """Return the board as CSV; texts that a spreadsheet would take for formulas get a ' in front."""
    return tidy.csv_text(rows(placed)).encode()


def json_file(placed: Sequence[Placed]) -> bytes:
    """Return the board as a JSON array of flat objects."""
    return tidy.json_text(rows(placed)).encode()


def tex_file(placed: Sequence[Placed], title: str, metric: str) -> bytes:
    """Return the first rows that rank as a booktabs table, as `cprbench report` prints its tables."""
    columns = [column for key in _PRINTED for column in COLUMNS if column.key == key]
    ranked = [of.listed for of in placed if of.listed.row.ranked]
    found = [_printed(listed, columns) for listed in ranked[:MOST_PRINTED]]
    note = "In the order of the board: the Pareto front of score against FLOPs first, then by score."
    if not ranked:
        note = "No row of this board ranks, so none is printed."
    if len(ranked) > MOST_PRINTED:
        note += f" The first {MOST_PRINTED} of {len(ranked)} rows that rank."
    heads = tuple(metric if column.key == "psi" else column.title for column in columns)
    words = tuple(j for j, column in enumerate(columns) if column.told is None)
    table = Table("main", title, heads, tuple(found), (note,), words)
    return latex.files(Report(title, (), rest=(Section("board", "", (table,)),)))["main.tex"]


def _printed(listed: Listed, columns: Sequence[Column]) -> tuple[Cell, ...]:
    def text(column: Column) -> str:
        cell = column.cell(listed)
        if column.key == "submission" and cell.small:
            return f"{cell.text} ({cell.small})"
        return f"{cell.text} {cell.small}" if column.told and cell.small else cell.text

    return tuple(Cell(text(column)) for column in columns)
