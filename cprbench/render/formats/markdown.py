"""The report as Markdown: for a README or a pull request. The answer stands open, what it rests on is folded."""

from __future__ import annotations

from collections.abc import Iterator

from cprbench.render.document import Items, Part, Prose, Report, Section, Table
from cprbench.render.text import escape

#: A body on GitHub holds 65,536 characters. What a report is shortened to, step by step, until it fits: rows of folded
#: tables and lists; the rest is on the page and in runs.csv.
_MOST_CHARACTERS = 60_000
_MOST_ROWS = (40, 16, 4, 0)


def markdown(report: Report) -> str:
    """Return a report as Markdown, short enough for a pull request where cutting what is folded makes it so.

    Figures are left out: their numbers stand in the tables.
    """
    texts = (_written(report, most) for most in _MOST_ROWS)
    return next((text for text in texts if len(text) <= _MOST_CHARACTERS), _written(report, _MOST_ROWS[-1]))


def _written(report: Report, most: int) -> str:
    lines = [f"# {escape(report.title)}", ""]
    for section in (*report.groups, *report.rest):
        lines += [f"## {escape(section.title)}", ""]
        for part in section.parts:
            lines += _part(part, most if isinstance(part, Items) and part.folded else None)
        for inside in section.sections:
            lines += _folded(inside, most)
    return "\n".join(lines)


def _folded(section: Section, most: int) -> Iterator[str]:
    """Yield a section that a reader opens by a click, where Markdown is shown by a browser."""
    told = [line for part in section.parts for line in _part(part, most)]
    if told:
        yield from (f"<details><summary>{section.title}</summary>", "", *told, "</details>", "")


def _part(part: Part, most: int | None = None) -> Iterator[str]:
    """Yield the lines of a part; of rows and items no more than `most`, and how many more there are."""
    match part:
        case Prose(paragraphs):
            for paragraph in paragraphs:
                yield from (escape(paragraph), "")
        case Items(title, items, folded):
            told = (*(f"- {escape(item)}" for item in items[:most]), "", *_more(len(items), most))
            if folded:
                yield from (f"<details><summary>{escape(title)}</summary>", "", *told, "</details>", "")
            else:
                yield from (f"{escape(title)}:", "", *told)
        case Table():
            yield from _table(part, most)


def _table(table: Table, most: int | None) -> Iterator[str]:
    yield from (f"**{escape(table.title)}**", "")
    if table.rows[:most]:
        yield f"| {' | '.join(map(escape, table.columns))} |"
        yield "|" + "".join("---|" if i in table.words else "---:|" for i in range(len(table.columns)))
        yield from (f"| {' | '.join(escape(cell.text) for cell in row)} |" for row in table.rows[:most])
        yield ""
    yield from _more(len(table.rows), most)
    for note in table.notes:
        yield from (escape(note), "")


def _more(here: int, most: int | None) -> Iterator[str]:
    if most is not None and here > most:
        yield from (f"{here - most} more: `cprbench report --format html,csv` has all of them.", "")
