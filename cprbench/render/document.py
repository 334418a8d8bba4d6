"""What a report says, before any format. All text is plain: every format escapes it in its own way.

A report is sections of parts: prose, lists, tables and drawings. The same table is a sortable one on the page, booktabs
on paper and pipes in Markdown, so no number is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One cell. `value` is what a table is sorted by: None (a name, a reason) is sorted by its text, after numbers."""

    text: str
    value: float | None = None
    shade: int | None = None  # 0 to 6 on the colour scale of heat maps; None: no colour


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    name: str  # of lower-case words joined by hyphens; unique in its group of runs
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()  # sentences below it
    words: tuple[int, ...] = (0,)  # columns of text, set flush left and broken between words


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is saved. `text` says in sentences what it shows, for those who cannot see it."""

    name: str
    title: str
    text: str
    draw: Callable[[Figure], None]
    inches: tuple[float, float] = (4.8, 3.4)  # wide, high: readable on a phone and in a column of a paper


@dataclass(frozen=True)
class Choice:
    """Drawings of which a reader looks at one at a time, by (label, drawing); the first one is shown at first."""

    name: str
    title: str
    label: str  # what is chosen
    options: tuple[tuple[str, Drawing], ...]


@dataclass(frozen=True)
class Prose:
    """Paragraphs; `lead`: they are the answer, and stand out."""

    paragraphs: tuple[str, ...]
    lead: bool = False


@dataclass(frozen=True)
class Items:
    """A list under a sentence; `folded`: shown only when a reader asks for it, where the format can."""

    title: str
    items: tuple[str, ...]
    folded: bool = False


Part = Table | Drawing | Choice | Prose | Items


@dataclass(frozen=True)
class Section:
    """A title over parts, then over sections inside. `name` is unique in the report: an anchor, a file's stem."""

    name: str
    title: str
    parts: tuple[Part, ...] = ()
    sections: tuple[Section, ...] = ()

    def walk(self) -> Iterator[Section]:
        """Yield this section and all inside it, in reading order."""
        yield self
        for section in self.sections:
            yield from section.walk()


@dataclass(frozen=True)
class Report:
    """A whole report. `groups` of comparable runs come first, then what holds of all (claims, blueprints, damage)."""

    title: str
    groups: tuple[Section, ...]
    rest: tuple[Section, ...] = ()
