"""Records in a notebook: a table to look at, and a frame to work with."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cprbench.errors import CprbenchError
from cprbench.judge.cpr import Group, compare
from cprbench.render.formats.tidy import reading_rows, run_rows
from cprbench.render.numbers import number, percent, score, signed
from cprbench.render.text import plain
from cprbench.render.titles import titles_of
from cprbench.runs import store
from cprbench.spec import RunRecord, Scalar

_COLUMNS = ("arm", "psi", "gain", "kept", "FLOPs")


@dataclass(frozen=True)
class Runs(store.Runs):
    """Runs in order of id, and damaged directories with what is wrong with them. A notebook shows how they compare."""

    @property
    def records(self) -> list[RunRecord]:
        """The records, in order of id."""
        return [run.record for run in self.runs]

    def to_frame(self, readings: bool = False) -> Any:
        """Return a pandas DataFrame with a row per run, or per reading: the columns of runs.csv and readings.csv.

        What was not measured is missing (pandas.NA or None). Raises CprbenchError where pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise CprbenchError(
                "to_frame needs pandas, which is not installed here. Install it (pip install pandas), or read what "
                "`cprbench report RUNS --format csv --out FOLDER` writes."
            ) from None
        rows = reading_rows(self.records) if readings else run_rows(self.records)
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        return pandas.DataFrame({name: pandas.Series(of, dtype=_dtype(of)) for name, of in columns.items()})

    def _repr_html_(self) -> str:
        damaged = f"<p>{len(self.damaged)} damaged, left out: {escape(', '.join(self.damaged))}</p>"
        groups = compare(self.records)
        tables = "".join(map(_table, groups, titles_of(groups)))
        return (tables or "<p>There are no runs.</p>") + damaged * bool(self.damaged)


def load_runs(path: Path | str) -> Runs:
    """Return the runs in a folder of runs, or the one run that `path` is.

    Damaged directories are named, never dropped in silence. Raises StoreError for a folder that is not there.
    """
    found = store.load_runs(path)
    return Runs(found.runs, found.damaged)


def _dtype(values: Sequence[Scalar]) -> str:
    """Return pandas' type of a column: guessing goes by way of float64, which FLOPs are too large for."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and max(value for value in values if isinstance(value, int)) < 2**63:
        return "Int64"
    names = ({float}, "Float64"), ({int, float}, "Float64"), ({str}, "string"), ({bool}, "boolean")
    return next((name for of, name in names if kinds == of), "object")


def _table(group: Group, title: str) -> str:
    rows = [
        (arm.arm, score(arm.final), signed(arm.gain), percent(arm.retained_gain), number(arm.gamma["flops"]))
        for arm in group.arms
    ]
    title = f"{title}, {group.metric}, {group.key['hardware_class']}"
    title += ". A smoke test, which never ranks" if group.key["role"] == "smoke" else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(plain(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table><caption>{escape(plain(title))}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
