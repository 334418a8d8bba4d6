"""The report as Markdown: for a README or a pull request. The answer stands open, what it rests on is folded."""

from __future__ import annotations

from collections.abc import Iterator

from cprbench.render.page import plain
from cprbench.render.report.document import Items, Part, Prose, Report, Section, Table


def markdown(report: Report) -> str:
    """Return a report as Markdown. Figures are left out: their numbers stand in the tables."""
    lines = [f"# {escape(report.title)}", ""]
    for section in (*report.groups, *report.rest):
        lines += [f"## {escape(section.title)}", ""]
        for part in section.parts:
            lines += _part(part)
        for inside in section.sections:
            lines += _folded(inside)
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text that Markdown and its tables show as it is."""
    text = plain(" ".join(text.split()))
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text


def _folded(section: Section) -> Iterator[str]:
    """Yield a section that a reader opens by a click, where Markdown is shown by a browser."""
    told = [line for part in section.parts for line in _part(part)]
    if told:
        yield from (f"<details><summary>{section.title}</summary>", "", *told, "</details>", "")


def _part(part: Part) -> Iterator[str]:
    match part:
        case Prose(paragraphs):
            for paragraph in paragraphs:
                yield from (escape(paragraph), "")
        case Items(title, items):
            yield from (f"{escape(title)}:", "", *(f"- {escape(item)}" for item in items), "")
        case Table():
            yield from _table(part)


def _table(table: Table) -> Iterator[str]:
    yield from (f"**{escape(table.title)}**", "")
    yield f"| {' | '.join(map(escape, table.columns))} |"
    yield "|" + "".join("---|" if i in table.words else "---:|" for i in range(len(table.columns)))
    for row in table.rows:
        yield f"| {' | '.join(escape(cell.text) for cell in row)} |"
    yield ""
    for note in table.notes:
        yield from (escape(note), "")
