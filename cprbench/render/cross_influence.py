"""Cross-influence for people: which blocks of examples drive which submodules, and what pairs of them should keep.

`html` is one page in the style of the blueprint's heat map; `show` prints the numbers at 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cprbench.judge.cross_influence import CrossInfluence, Retention
from cprbench.judge.groups import Figure
from cprbench.render.document import Cell, Prose, Report, Section, Table
from cprbench.render.heatmap import EDGES, scale, share_cell, told
from cprbench.render.numbers import score
from cprbench.render.text import plain

if TYPE_CHECKING:
    from rich.console import Console

#: What every view says beside its numbers (NOTES: choices settled; paper, eq. 37).
NORMS = (
    "The paper's T has one entry per scalar and sums absolute values (eq. 32 and 34). Here an entry is the L2 norm of "
    "a submodule's gradient at one example: such norms do not add up over submodules, so eq. 34 is shown on T and on "
    "its square."
)
COST = (
    "Retention is a prediction of gain and says nothing of cost, which is not k x q: a forward pass does not shrink "
    "with k, and scoring is paid for too (eq. 37)."
)
GRID = ("k", "reached", "q", "eq. 34, T", "eq. 34, T^2", "eq. 35")
_VALUES = 8  # as many singular values as a line shows
Facts = Iterable[tuple[str, str]]


def numbers(found: CrossInfluence) -> list[tuple[str, str]]:
    """Return what holds of T as a whole, as (name, value)."""
    spectrum, fits = found.spectrum, found.exponents
    values = spectrum.singular_values
    more = f", … ({len(values)} in all)" if len(values) > _VALUES else ""
    rank = spectrum.why or (
        f"{told(spectrum.effective_rank)} of {len(values)}; rank {spectrum.rank_90} holds 90 % of the squares, "
        f"rank {spectrum.rank_99} 99 %"
    )
    gamma, delta = (
        f"{told(value)} (R^2 {told(fit)})" if value is not None else "none: nothing to fit it to"
        for value, fit in ((fits.gamma, fits.gamma_r_squared), (fits.delta, fits.delta_r_squared))
    )
    return [
        ("singular values", ", ".join(told(value) for value in values[:_VALUES]) + more),
        ("effective rank", rank),
        ("gamma", f"{gamma}, share of T by share of parameters"),
        ("delta", f"{delta}, share of T by share of examples"),
    ]


def pairs(found: CrossInfluence) -> list[tuple[str, ...]]:
    """Return the largest entries of T: submodule, example, value, share of the sum of T in percent."""
    return [(p.submodule, plain(p.id), told(p.value), f"{100 * p.share:.3g}") for p in found.pairs]


def grid(found: CrossInfluence) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return rows of GRID, and why some of their numbers are none."""

    def row(at: Retention) -> tuple[str, ...]:
        reached, *predictions = (score(Figure(x, "none")) for x in (at.k_reached, at.eq34, at.eq34_squared, at.eq35))
        return (f"{at.k:g}", reached, f"{at.q:g}", *predictions)

    return [row(at) for at in found.grid], list(dict.fromkeys(at.why for at in found.grid if at.why))


def show(console: Console, found: CrossInfluence, facts: Facts) -> None:
    """Print facts, the numbers of T, its largest entries and the grid of predicted retention."""
    from rich.table import Table
    from rich.text import Text

    def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
        made = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=bool(columns[0]))
        for i, name in enumerate(columns):
            made.add_column(name, overflow="fold", no_wrap=False, justify="left" if i < left else "right")
        for row in rows:
            made.add_row(*map(Text, row))
        console.print(made)

    table("", ("", ""), [*facts, *numbers(found)], 2)
    table("\nlargest entries of T", ("submodule", "example", "norm", "% of T"), pairs(found), 2)
    rows, reasons = grid(found)
    table("\npredicted share of the full gain", GRID, rows, 0)
    for sentence in (*(f"none: {why}" for why in reasons), NORMS, COST):
        console.print(Text(f"\n{sentence}"))


def html(found: CrossInfluence, facts: Facts, title: str) -> str:
    """Return the page; the same bytes for the same numbers."""
    from cprbench.render.formats.html import render_html

    rows, reasons = grid(found)
    lead = (
        f"{len(found.cells)} submodules by {len(found.block_of)} training examples, in blocks of equal size: block 1 "
        "has the largest gradient norms."
    )
    parts = (
        Prose((lead, NORMS)),
        _heat(found),
        _table("whole", "T as a whole", ("what", "value"), numbers(found), (0, 1)),
        _table("pairs", "Largest entries of T", ("submodule", "example", "norm", "% of T"), pairs(found), (0, 1)),
        _table("grid", "Predicted share of the full gain", GRID, rows, ()),
        Prose((*(f"none: {why}" for why in reasons), COST)),
        _table("facts", "Where the numbers come from", ("what", "value"), facts, (0, 1)),
    )
    return render_html(Report(title, (Section("cross-influence", "What the scores say", parts),)))


def _heat(found: CrossInfluence) -> Table | Prose:
    if found.shares is None:
        return Prose((f"None: {found.spectrum.why}.",))
    blocks = tuple(f"block {i + 1}" for i in range(found.shares.shape[1]))
    rows = tuple(
        (Cell(name), *map(share_cell, row)) for name, row in zip(found.cells, found.shares.tolist(), strict=True)
    )
    return Table("heat", "Share of the sum of T, in percent", ("submodule", *blocks), rows, (scale(EDGES),))


def _table(
    name: str, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: tuple[int, ...]
) -> Table:
    return Table(name, title, tuple(columns), tuple(tuple(map(_cell, row)) for row in rows), words=words)


def _cell(text: str) -> Cell:
    """Return a cell that is sorted as the number that it shows, where it shows one."""
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)
