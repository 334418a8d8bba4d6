"""A report as one page that needs nothing else: light and dark, on a phone, in print, without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from importlib.resources import files
from typing import Any

from cprbench.render.document import Cell, Drawing, Report
from cprbench.render.figures.saving import svg
from cprbench.render.text import plain

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
    return _document(str(escape(plain(report.title))), body + "\n", _template("sort.js"))


def _template(name: str) -> str:
    """Return a file of the package's templates."""
    return files("cprbench.render").joinpath("templates", name).read_text(encoding="utf-8")


def _document(title: str, body: str, script: str) -> str:
    """Return a whole page; `title` and `body` are HTML, escaped already. Only `script` runs on it: its hash is told."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; script-src \'sha256-{digest}\'">\n'
        f"<title>{title}</title>\n<style>\n{_template('page.css')}</style>\n</head>\n<body>\n"
        f"{body}<script>{script}</script>\n</body>\n</html>\n"
    )
