"""How pages are written: one environment that escapes everything, and the files that all pages share."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cprbench.render.site.columns import AXES, COLUMNS
from cprbench.render.text import plain

if TYPE_CHECKING:
    from jinja2 import Environment

#: Only own files, nothing inline, no request to anyone else.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)
#: One script in parts, in this order.
_SCRIPTS = ("rows", "plane", "compare", "events")
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<path d="M2 1v13h13" fill="none" stroke="#52606d" stroke-width="1.5"/>'
    '<path d="M4 11h3V7h3V4h5" fill="none" stroke="#0072b2" stroke-width="2.5"/></svg>\n'
)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def written(value: Any) -> Any:
        if type(value) is not str or value.isprintable():  # Markup is a str that was escaped
            return value
        return plain(value)

    return Environment(
        loader=PackageLoader("cprbench.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=written,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(template: str, root: str, **context: Any) -> bytes:
    """Return a page; `root`: the way from its folder to the site's ("../"). All strings of the context are escaped."""
    text = _environment().get_template(f"site/{template}").render(root=root, policy=POLICY, **context)
    return (text + "\n").encode()


def assets() -> dict[str, bytes]:
    """Return the files that all pages share, by path: the report's own style first, then what boards add to it."""
    folder = files("cprbench.render").joinpath("templates")

    def read(*path: str) -> str:
        return folder.joinpath(*path).read_text(encoding="utf-8")

    return {
        "assets/icon.svg": _ICON.encode(),
        "assets/site.css": (read("page.css") + read("site", "site.css") + _columns_css()).encode(),
        "assets/site.js": "".join(read("site", f"{name}.js") for name in _SCRIPTS).encode(),
        "assets/sort.js": read("sort.js").encode(),
    }


def _columns_css() -> str:
    """Return the rules that hide a column unless it is ticked, or its resource is chosen; they need no script."""
    rules, words, broad = [], [], []
    for i, column in enumerate(COLUMNS, 2):  # after the position
        cell = f".board .c{i}"  # a class, because :nth-child() costs a browser twice the time
        unticked, other = f":has(#c-{column.group}:not(:checked))", f":has(#a-{column.resource}:not(:checked))"
        if column.key in ("arm", "submission"):
            pass  # what a row is, and the way to all that is known of it
        elif column.group != column.key:
            rules += [f"main{unticked} {cell}", f"main{other} {cell}"]
        else:
            rules.append(f"main{unticked}{other if column.resource in AXES else ''} {cell}")
        if column.told is None:
            words.append(cell)
            broad += [cell] * (column.group not in ("suite", "tier", "picker"))
    return (
        f"{','.join(rules)}{{display:none}}\n{','.join(words)}{{text-align:left;padding-left:.9rem}}\n"
        f":is({','.join(words)}) span{{white-space:normal}}\n{','.join(broad)}{{white-space:normal;min-width:8rem}}\n"
    )
