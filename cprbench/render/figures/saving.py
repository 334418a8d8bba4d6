"""Drawings as SVG for a page and as PDF for paper: the same bytes for the same drawing and matplotlib.

Names come from strangers. They are set as they stand, never as formulas; what no font should show (controls, marks that
turn the writing direction) is written as its code point.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cprbench.errors import CprbenchError
from cprbench.render.document import Drawing
from cprbench.render.figures.style import INK, LETTERS, LINE, SOFT, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A page sets these three for light and dark; alone, a drawing is black on white.
_NEUTRAL = {INK: "--ink", SOFT: "--soft", LINE: "--line"}
_FONTS = "system-ui, 'DejaVu Sans', sans-serif"
_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so texts are as wide everywhere
    "font.size": LETTERS,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": LETTERS,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollars is no formula
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": LETTERS,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": LETTERS,
}
_NUMBER = re.compile(r"-?\d+\.\d+")
_HREF = "{http://www.w3.org/1999/xlink}href"
_COMMAND = re.compile(r" ?([A-Za-z]) ")
_USED = re.compile(r"#([\w-]+)")


def svg(drawing: Drawing, prefix: str = "", *, alone: bool = False) -> str:
    """Return a drawing as an inline `<svg>` that fills the width it is given, with its title and text for readers.

    `prefix` stands before every id, so that many drawings share a page: letters, digits and hyphens, unique in it.
    `alone`: for a file of its own, where no page says what its ink is. Raises CprbenchError without matplotlib.
    """
    with _drawn(drawing, shown) as figure, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # the reader's browser has more fonts
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(text.getvalue())
    used = set(_USED.findall(" ".join(v for e in root.iter() for k, v in e.items() if k != "id" and "#" in v)))
    names = {e.get("id"): f"{prefix}s{i}" for i, e in enumerate(e for e in root.iter() if e.get("id") in used)}
    stroked = {f"#{e.get('id')}" for e in root.iter() if "stroke" in e.get("style", "")}
    for element in root.iter():
        if element.get(_HREF) in stroked:  # a marker is stroked as its shape is: the use of it need not say so again
            element.set("style", ";".join(s for s in element.get("style", "").split("; ") if s.startswith("fill")))
        _tidy(element, {str(old): new for old, new in names.items()}, neutral=not alone)
    _flatten(root)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-labelledby": f"{prefix}title {prefix}desc",
        "viewBox": root.get("viewBox", ""),
        "style": f"fill:{INK if alone else _variable(INK)};stroke-linejoin:round;font-family:{_FONTS}",
    }
    for i, (tag, words) in enumerate((("title", drawing.title), ("desc", drawing.text))):
        label = ElementTree.Element(tag, {"id": prefix + tag})
        label.text = shown(words)
        root.insert(i, label)
    return ElementTree.tostring(root, encoding="unicode")


def pdf(drawing: Drawing) -> bytes:
    """Return a drawing as a page of PDF with its fonts inside; a character that they lack is a question mark.

    Raises CprbenchError without matplotlib.
    """
    with _drawn(drawing, _printed()) as figure:
        out = io.BytesIO()
        figure.savefig(out, format="pdf", metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
    return out.getvalue()


@contextmanager
def _drawn(drawing: Drawing, show: Callable[[str], str]) -> Iterator[Figure]:
    """Yield the figure, its texts as `show` writes them, under settings that no matplotlibrc of a reader changes."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.text import Text
    except ImportError as error:
        raise CprbenchError(f"figures need matplotlib ({error}): pip install matplotlib") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)  # type: ignore[arg-type]
        figure = Figure(figsize=drawing.inches)
        drawing.draw(figure)
        for text in figure.findobj(Text):
            text.set_text(show(text.get_text()))
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = axis.get_major_formatter()
                labels.format_ticks = partial(_ticks, labels.format_ticks, show)  # type: ignore[method-assign]
        yield figure


def _ticks(of: Callable[[list[float]], list[str]], show: Callable[[str], str], at: list[float]) -> list[str]:
    return [show(text) for text in of(at)]


def _printed() -> Callable[[str], str]:
    """Return how text is written in the one font that matplotlib brings: what it lacks is a question mark."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return lambda text: "".join(c if c == "\n" or ord(c) in known else "?" for c in shown(text))


def _variable(colour: str) -> str:
    return f"var({_NEUTRAL[colour]},{colour})"


def _tidy(element: ElementTree.Element, names: dict[str, str], *, neutral: bool) -> None:
    """Drop what says nothing, round what nobody sees, and give ids and neutral colours the names of the page."""
    element.tag = element.tag.partition("}")[2]  # HTML knows the namespace
    kept = {}
    for key, value in element.items():
        key = key.partition("}")[2] or key
        if key == "id" and value not in names:
            continue
        value = names[value] if key == "id" else _USED.sub(lambda m: f"#{names.get(m[1], m[1])}", value)
        if key in ("d", "x", "y", "width", "height", "transform"):
            value = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))
            value = "" if value.startswith("rotate(-0 ") else _COMMAND.sub(r"\1", value)
        if key == "style":
            value = _style(value, neutral=neutral)
        if key == "fill" and neutral and value in _NEUTRAL:  # an attribute takes no variable, a style does
            key, value = "style", f"fill:{_variable(value)}"
        kept[key] = value
    element.attrib = {key: value for key, value in kept.items() if value}
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _style(value: str, *, neutral: bool) -> str:
    entries = [tuple(part.strip() for part in entry.split(":", 1)) for entry in value.split(";") if ":" in entry]
    kept = [(k, v) for k, v in entries if k != "font-family" and (k, v) != ("stroke-dashoffset", "0")]
    return ";".join(f"{k}:{_variable(v) if neutral and v in _NEUTRAL else v}" for k, v in kept)


def _flatten(element: ElementTree.Element) -> None:
    """Take out what draws nothing, and groups that say nothing about what is in them."""
    children: list[ElementTree.Element] = []
    for child in element:
        _flatten(child)
        invisible = child.tag == "path" and child.get("style") == "fill:none"
        if child.tag in ("style", "metadata") or invisible or (child.tag in ("g", "defs") and not len(child)):
            continue
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children
