"""How a run that was run again agrees with its record, for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from cprbench.judge.agreement import Agreement, Line
from cprbench.judge.groups import Figure
from cprbench.render.numbers import number, percent, resource_title, score, signed, times
from cprbench.render.text import plain
from cprbench.spec import RESOURCES

_WIDTH = 80


def text(found: Agreement) -> str:
    """Return an agreement as lines; the last one is the verdict."""
    rows = [("", "recorded", "again", "")]
    rows += [_cells(line) for line in found.lines]
    rows.append(("same predictions", "", percent(Figure(found.same_predictions, "nothing is predicted")), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [plain(f"run {found.run_id}: {found.arm}, block {found.block}")]
    for name, *values, told in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, told]).rstrip())
    return "\n".join([*lines, *_below(found), plain(found.verdict)]) + "\n"


def document(found: Agreement) -> dict[str, Any]:
    """Return an agreement for JSON: its lines, what differs, and the verdict."""
    return asdict(found) | {"differs": found.differs, "verdict": found.verdict}


def _below(found: Agreement) -> Iterator[str]:
    then, now = found.hardware
    on = f"on {now}" if then == now else f"recorded on {then}, run again on {now}: their hours are not compared"
    for note in (on, *found.notes):
        yield from textwrap.wrap(plain(note), _WIDTH, subsequent_indent="  ", break_long_words=False)


def _cells(line: Line) -> tuple[str, str, str, str]:
    name = resource_title(line.name) if line.name in RESOURCES else line.name
    shown = (_value(line, line.recorded), _value(line, line.again))
    if line.allowed is not None and line.difference is not None:
        word = "within" if line.agrees else "MORE than"
        return (name, *shown, f"{signed(Figure(line.difference))}, {word} {score(Figure(line.allowed))}")
    if line.why is not None:
        return (name, *shown, plain(line.why))
    if line.ratio is not None:
        return (name, *shown, times(Figure(line.ratio)))
    return (name, *shown, "equal" if line.agrees else "DIFFERS")


def _value(line: Line, value: Any) -> str:
    match value:
        case None:
            return "-"
        case str():
            return plain(value[:12])
        case float():
            return number(Figure(value)) if line.name in RESOURCES else score(Figure(value))
        case _:
            return str(value)
