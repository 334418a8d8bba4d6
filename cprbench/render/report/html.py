"""A report as one page that needs nothing else: light and dark, on a phone, in print, without JavaScript."""

from __future__ import annotations

import math
import re
from typing import Any

from cprbench.render.figures.saving import svg
from cprbench.render.page import document, plain, template
from cprbench.render.report.document import Cell, Drawing, Report

#: A number and the interval that is set below it, so that tables are as wide as their numbers.
_INTERVAL = re.compile(r"(.+) (\[[^][]+\])")


def render_html(report: Report) -> str:
    """Return the page; the same bytes for the same report.

    All text of a report is a stranger's: it is escaped, and what a screen would obey or hide in it is written out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    def sortable(cell: Cell) -> bool:
        return cell.value is not None and math.isfinite(cell.value)

    def halves(cell: Cell) -> tuple[str, str]:
        found = _INTERVAL.fullmatch(cell.text) if cell.value is not None else None
        return (found[1], found[2]) if found else (cell.text, "")

    def drawn(drawing: Drawing, prefix: str) -> Markup:
        return Markup(svg(drawing, prefix))

    def written(value: Any) -> Any:
        return plain(value) if type(value) is str else value  # not Markup, which is a str that was escaped

    environment = Environment(
        loader=PackageLoader("cprbench.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=written,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(kind=lambda part: type(part).__name__, svg=drawn)
    environment.filters.update(sortable=sortable, halves=halves)
    body = environment.get_template("report.html").render(report=report)
    return document(str(escape(plain(report.title))), body + "\n", template("sort.js"))
