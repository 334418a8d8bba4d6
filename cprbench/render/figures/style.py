"""How figures look: colours that read on white and on the dark page, marks that differ without colour, axes, labels."""

from __future__ import annotations

import textwrap
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cprbench.judge.statistics import Estimate
from cprbench.render.numbers import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from cprbench.judge.cpr import ArmResult

INK, SOFT, LINE = "#000000", "#52606d", "#d5dbe1"
#: Contrast 3:1 or more on white and on #10161d; apart in any colour blindness (a test holds both).
COLOURS = ("#0072b2", "#d55e00", "#9900ff", "#aa8888", "#995533", "#9977ff")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
Dash = Literal["-", "none"] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)))
HATCHES = ("", "////", "||||", "\\\\\\\\", "xxxx", "----")
#: Whose look never changes. The first six have each a colour of its own, for they are compared most.
METHODS = (
    *("partial", "full", "lora", "head", "random-submodules", "partial+lora"),
    *("qlora", "last-layers", "bitfit", "spectrum", "peft"),
)
#: What no writing needs: controls, marks of direction, halves of characters, code points without a character.
_NOT_SHOWN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: Larger spans of an axis are drawn on logarithms.
MOST_LINEAR = 8.0
WIDE = 4.8  # inches: a column of a paper
LETTERS = 10.2  # points: on a phone, where a figure is 360 pixels wide, 10.6 pixels
IN_LEGEND = 20  # characters of a label in a legend of two columns
MOST_ROWS = 20  # of a figure that has a row per arm: with more, its letters could not be read on paper
_ROW = 0.25  # inches of height that a line of a legend takes
_LINE, _BETWEEN = 0.18, 0.12  # inches that a line of a row's label takes, and the space below it


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    colour: str
    marker: str
    dash: Dash


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look per name, in their order; the first twelve differ in their marker, whatever the colour."""
    return {name: _look(i) for i, name in enumerate(dict.fromkeys(names))}


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return a look per method: one that cprbench brings has the same in every figure; others follow by their name."""
    known = dict.fromkeys(methods)
    order = [*METHODS, *sorted(set(known).difference(METHODS))]
    return {method: _look(order.index(method)) for method in known}


def looks_singly(arms: Sequence[ArmResult], drawn: Container[str]) -> dict[str, Look]:
    """Return a look per arm that is drawn under its own name: those of its group, where there are enough for all."""
    few = len(arms) <= len(MARKERS)
    return arm_looks({arm.arm: arm.method for arm in arms if few or arm.arm in drawn})


def arm_looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return a look per arm, given its method: the first arm of a method has the method's, the others its colour.

    As long as there are markers that no other series has, they have one of these; their lines differ in any case.
    """
    own, found = method_looks(methods.values()), dict[str, Look]()
    free = [marker for marker in MARKERS if marker not in {look.marker for look in own.values()}]
    count = Counter[str]()
    for arm, method in methods.items():
        look, nth = own[method], count[method]
        if nth:
            at = MARKERS.index(look.marker) + nth
            marker = free.pop(0) if free else MARKERS[at % len(MARKERS)]
            look = Look(look.colour, marker, DASHES[(DASHES.index(look.dash) + nth) % len(DASHES)])
        found[arm] = look
        count[method] += 1
    return found


def _look(i: int) -> Look:
    return Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[(i + i // 6) % len(DASHES)])


def shown(text: str) -> str:
    """Return text in which what no writing needs (controls, marks of direction) is told by its code point."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in _NOT_SHOWN else f"[U+{ord(c):04X}]" for c in text)


def label(name: str, width: int = 24, lines: int = 4) -> str:
    """Return a stranger's name as a label of a few lines of `width` characters, cut where it is longer."""
    text = shown(" ".join(name.split()))
    width = width // 2 if any(unicodedata.east_asian_width(c) in "WF" for c in text) else width
    found = textwrap.wrap(text, width, max_lines=lines, placeholder=" …", break_on_hyphens=False) or ["(no name)"]
    return " " * name.startswith("_") + "\n".join(found)  # matplotlib's legends leave out what begins with _


def mark(look: Look, name: str, *, line: bool = False, hollow: bool = False) -> Line2D:
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D

    style: Dash = look.dash if line else "none"
    face = "none" if hollow else look.colour
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=style, label=name, markerfacecolor=face)


def mean_mark(
    axes: Axes, at: tuple[float, float], along: Literal["x", "y"], found: Estimate, look: Look, **style: Any
) -> None:
    """Draw a mean with its 95 % interval along an axis, where it has one."""
    x, y = at
    if found.value is not None and found.low is not None and found.high is not None:
        xs, ys = ((found.low, found.high), (y, y)) if along == "x" else ((x, x), (found.low, found.high))
        axes.plot(xs, ys, color=look.colour, linewidth=1.2, marker="|" if along == "x" else "_", markersize=6)
    axes.plot([x], [y], linestyle="none", color=look.colour, marker=look.marker, zorder=3, **style)


def scale(axes: Axes, along: Literal["x", "y"], values: Iterable[float]) -> None:
    """Make an axis logarithmic where its values are positive and span more than MOST_LINEAR, and name its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    known = list(values)
    axis = axes.xaxis if along == "x" else axes.yaxis
    if known and min(known) > 0 and max(known) / min(known) > MOST_LINEAR:
        (axes.set_xscale if along == "x" else axes.set_yscale)("log")
        decades = max(known) / min(known) > 100
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5 if along == "x" else 6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def legend(figure: Figure, handles: Sequence[Line2D], columns: int = 2) -> None:
    """Put a legend below the axes, where it covers nothing."""
    figure.legend(handles=list(handles), loc="outside lower left", ncols=columns, handlelength=2.8, columnspacing=1.2)


def legend_inches(names: Sequence[str]) -> float:
    """Return the height that a legend of these labels takes, in inches."""
    return _ROW * -(-len(names) // 2) * max((name.count("\n") + 1 for name in names), default=0)


def rows(labels: Sequence[str]) -> tuple[list[float], float]:
    """Return where rows of these labels stand, in inches from the top, and how high all are."""
    places, high = [], 0.0
    for text in labels:
        own = _LINE * (text.count("\n") + 1) + _BETWEEN
        places.append(high + own / 2)
        high += own
    return places, high


def set_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of a figure, the first one on top."""
    places, high = rows(labels)
    axes.set_yticks(places, labels=list(labels))
    axes.set_ylim(high, 0)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
