"""Every format of the report, by name: evidence -> files. The same bytes for the same records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cprbench.judge.claims import Claim, check
from cprbench.judge.cpr import Group, compare
from cprbench.judge.curves import curves
from cprbench.judge.evidence import Evidence
from cprbench.judge.retention import retention
from cprbench.render.document import Report
from cprbench.render.formats.markdown import markdown
from cprbench.render.report.contents import report_of
from cprbench.schema import canonical_json
from cprbench.spec import RunRecord


def render_report(
    records: Sequence[RunRecord], damaged: Mapping[str, str] | None = None, evidence: Evidence | None = None
) -> str:
    """Return the report of records as Markdown; directories that could not be read are named at its end.

    `evidence`: the runs with their other files, which give the intervals their item error and the tables of curves.
    """
    return markdown(report_of(evidence if evidence is not None else Evidence.of(records, damaged)))


@dataclass(frozen=True)
class Writing:
    """What one call of the report writes. Parts that several formats need are made once."""

    evidence: Evidence
    claims: Sequence[Claim] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of comparable runs."""
        return compare(self.evidence.records, self.evidence.predictions)

    @cached_property
    def report(self) -> Report:
        """The document."""
        return report_of(self.evidence, check(self.claims, self.evidence, self.groups), self.groups)

    @cached_property
    def comparison(self) -> str:
        """The comparison as JSON: {"groups": [{"key", "arms", "curves", "retention", …}], "damaged": {…}}."""
        found = []
        for group in self.groups:
            table = retention(group)
            shown = dataclasses.asdict(group, dict_factory=_without_working)
            told = dataclasses.asdict(curves(group, self.evidence), dict_factory=_without_working)
            shown["curves"] = _infinite_as_word(told)
            shown["retention"] = None if table is None else dataclasses.asdict(table)
            for name in ("failures", "records"):
                shown[name] = [record.run_id for record in shown[name]]
            found.append(shown)
        return canonical_json({"groups": found, "damaged": self.evidence.damaged}) + "\n"

    def files(self, format_: str) -> dict[str, bytes]:
        """Return the files of a format of FORMATS, by path below the folder that they go to."""
        return {
            path: text if isinstance(text, bytes) else text.encode() for path, text in FORMATS[format_](self).items()
        }


def _without_working(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dataclass as a dict without what an estimate keeps for its p-values."""
    return {name: value for name, value in pairs if name != "means"}


def _infinite_as_word(part: Any) -> Any:
    """Return a document in which a target that was never reached costs "infinite": JSON has no such number."""
    if isinstance(part, dict):
        return {name: _infinite_as_word(value) for name, value in part.items()}
    return "infinite" if part == float("inf") else part


def _html(of: Writing) -> dict[str, str | bytes]:
    from cprbench.render.formats.html import render_html

    return {"report.html": render_html(of.report)}


def _markdown(of: Writing) -> dict[str, str | bytes]:
    from cprbench.render.formats.model_card import model_cards

    cards = {f"model-cards/{stem}.md": text for stem, text in model_cards(of.groups).items()}
    return {"report.md": markdown(of.report), **cards}


def _latex(of: Writing) -> dict[str, str | bytes]:
    from cprbench.render.formats.latex import files

    return {f"latex/{path}": content for path, content in files(of.report).items()}


def _csv(of: Writing) -> dict[str, str | bytes]:
    from cprbench.render.formats.tidy import csv_text, reading_rows, run_rows

    records = of.evidence.records
    return {"runs.csv": csv_text(run_rows(records)), "readings.csv": csv_text(reading_rows(records))}


def _json(of: Writing) -> dict[str, str | bytes]:
    from cprbench.render.formats.tidy import json_text, metrics_lines, reading_rows, run_rows

    records = of.evidence.records
    return {
        "runs.json": json_text(run_rows(records)),
        "readings.json": json_text(reading_rows(records)),
        "comparison.json": of.comparison,
        "metrics.jsonl": metrics_lines(of.evidence),
    }


#: format -> what writes it
FORMATS: dict[str, Callable[[Writing], dict[str, str | bytes]]] = {
    "html": _html,
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
