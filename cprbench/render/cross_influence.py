"""Cross-influence for people: which blocks of examples drive which submodules, and what pairs of them should keep.

`html` is one page in the style of the blueprint's heat map; `show` prints the numbers at 80 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from cprbench.judge.cross_influence import CrossInfluence, Retention
from cprbench.judge.groups import Figure
from cprbench.render.heatmap import legend, percent, step, told
from cprbench.render.numbers import score
from cprbench.render.page import page, plain, scrolled

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
    rows, reasons = grid(found)
    notes = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in (*(f"none: {why}" for why in reasons), COST))
    body = (
        f"<h2>Share of the sum of T, in percent</h2>\n{legend()}\n{_heat(found)}\n"
        f"<h2>T as a whole</h2>\n{_facts(numbers(found))}\n"
        f"<h2>Largest entries of T</h2>\n"
        f"{_table('pairs', 'Largest entries of T', ('submodule', 'example', 'norm', '% of T'), pairs(found))}\n"
        f"<h2>Predicted share of the full gain</h2>\n{_table('grid', 'Retention by k and q', GRID, rows)}\n{notes}"
        f"<h2>Where the numbers come from</h2>\n{_facts(facts)}\n"
    )
    lead = (
        f"{len(found.cells)} submodules by {len(found.block_of)} training examples, in blocks of equal size: block 1 "
    )
    return page(escape(title), escape(f"{lead} has the largest gradient norms. {NORMS}"), body)


def _facts(facts: Facts) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(n)}</th><td>{escape(v)}</td></tr>' for n, v in facts)
    return f'<table class="facts">{rows}</table>'


def _heat(found: CrossInfluence) -> str:
    if found.shares is None:
        return f"<p>None: {escape(found.spectrum.why or '')}.</p>"
    blocks = "".join(f'<th scope="col">{i + 1}</th>' for i in range(found.shares.shape[1]))
    lines = [f'<thead><tr><th class="first" scope="col">submodule</th>{blocks}</tr></thead>', "<tbody>"]
    for name, row in zip(found.cells, found.shares.tolist(), strict=True):
        cells = "".join(f'<td class="s{step(share)}">{percent(share)}</td>' for share in row)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return scrolled("heat", "Share of the sum of T by submodule and block of examples", [*lines, "</tbody>"])


def _table(kind: str, label: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in columns[1:])
    lines = [f'<thead><tr><th class="first" scope="col">{columns[0]}</th>{head}</tr></thead>', "<tbody>"]
    for first, *rest in rows:
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(v)}</td>" for v in rest)}</tr>')
    return scrolled(kind, label, [*lines, "</tbody>"])
