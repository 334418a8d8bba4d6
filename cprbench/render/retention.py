"""The retention table of a group: cells for a page or a terminal, and the words that belong below it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from cprbench.judge.groups import Told
from cprbench.judge.retention import EQUAL, PREDICTIONS, Retention, Row
from cprbench.render.numbers import number, percent, score, times

_NAMED = 3  # as many labels as a sentence names
TITLE = "Retention against full tuning on all data (k = 1, q = 1)"
LEGEND = (
    "kept: share of full's gain; random: the same on examples drawn by lot, at equal q and at equal billed FLOPs "
    "(where all data is used, what is drawn by lot are submodules at equal k); eq. 34: share of T, the L2 norm of a "
    "gradient per submodule and example (the paper sums absolute scalars), and of its square; eq. 35: "
    "k^gamma q^delta; FLOPs and seconds: share of full's, selection included; k·q: the cost that the paper assumes "
    "(4.4)."
)


def _fraction(figure: Told) -> str:
    return number(figure, 2)


#: column -> (its figure, its format)
COLUMNS: dict[str, tuple[Callable[[Row], Told], Callable[[Told], str]]] = {
    "k": (lambda row: row.k, _fraction),
    "q": (lambda row: row.q, _fraction),
    "kept": (lambda row: row.kept, percent),
    "random q": (lambda row: row.random["q"].kept, percent),
    "random FLOPs": (lambda row: row.random["flops"].kept, percent),
    "eq34 T": (lambda row: row.predicted["eq34_t"], percent),
    "eq34 T²": (lambda row: row.predicted["eq34_t_squared"], percent),
    "eq35": (lambda row: row.predicted["eq35"], percent),
    "FLOPs": (lambda row: row.cost["flops"], percent),
    "seconds": (lambda row: row.cost["seconds"], percent),
    "k·q": (lambda row: row.k_times_q, _fraction),
}
_PREDICTED = dict(zip(PREDICTIONS, ("eq34 T", "eq34 T²", "eq35"), strict=True))


def short(text: str) -> str:
    """Return a cell that fits: a number as it is; n/e: it does not exist; -: there is none; n/m: not measured."""
    if text.startswith("n/e"):
        return "n/e"
    return text if text[:1].isdigit() or text[:1] in "+-" else "-" if text.startswith("no ") else "n/m"


def cells(row: Row, columns: list[str]) -> list[str]:
    """Return the cells of a row in these columns, reasons cut short."""
    return [short(show(figure(row))) for figure, show in (COLUMNS[name] for name in columns)]


def answer(table: Retention) -> list[str]:
    """Return in plain sentences how many rows kept more than random, and how the predictions fit. Points only."""
    words = []
    for equal, name in EQUAL.items():
        pairs = [(row.kept.value, row.random[equal].kept.value) for row in table.rows if row.random[equal].equal]
        more = [kept > drawn for kept, drawn in pairs if kept is not None and drawn is not None]
        words.append(f"at {name} {sum(more)} of {len(more)} rows" if more else f"at {name} no row to compare")
    fits = []
    for name, title in _PREDICTED.items():
        found = table.agreement[name]
        if found.mean_difference.value is None:
            fits.append(f"{title} {found.mean_difference.why}")
        else:
            points = f"off by {100 * found.mean_difference.value:.1f} points on average"
            fits.append(f"{title} {points}, Spearman {score(found.spearman)} ({found.rows} rows)")
    lost = [f"{row.arm} ({_some(row.classes_dropped)})" for row in table.rows if row.classes_dropped]
    return [
        f"Kept more than random: {'; '.join(words)}. Points, no test of significance.",
        f"Predicted against kept: {'; '.join(fits)}.",
        *([f"No example was left of some labels: {'; '.join(lost)}."] if lost else []),
    ]


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + more


def reasons(table: Retention) -> list[str]:
    """Return a line per reason why a cell has no number, and per baseline that is not equal, with their arms."""
    whys: dict[tuple[str, str], list[str]] = defaultdict(list)  # (column, why) -> arms
    for row in table.rows:
        for title, (figure, _) in COLUMNS.items():
            if figure(row).value is None:
                whys[title, str(figure(row).why)].append(row.arm)
        for equal, name in EQUAL.items():
            of = row.random[equal]
            if of.kept.value is not None and not of.equal:
                off = f"{times(of.ratio)} as much" if of.ratio.value is not None else str(of.ratio.why)
                whys[f"random at {name}, not counted", off].append(row.arm)
    lines: dict[tuple[str, str], list[str]] = defaultdict(list)  # (why, arms) -> columns
    for (title, why), arms in whys.items():
        lines[why, ", ".join(arms)].append(title)
    return [f"{', '.join(titles)}: {why} ({arms})" for (why, arms), titles in lines.items()]
