"""The comparison table of a terminal, made for 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cprbench.judge.cpr import Group
from cprbench.judge.retention import retention
from cprbench.render import retention as page
from cprbench.render.numbers import number, percent, score, signed, times
from cprbench.render.report.answer import headline
from cprbench.render.retention import short
from cprbench.render.text import plain
from cprbench.render.titles import titles_of


def print_groups(console: Console, groups: list[Group]) -> None:
    """Print one table per group, with its answer in a line below."""
    for group, called in zip(groups, titles_of(groups), strict=True):
        base = score(group.arms[0].base) if group.arms else "-"
        title = safe(f"{called}, {group.metric} (base {base})")
        table = Table(title=title, title_justify="left", pad_edge=False, show_edge=False, box=None)
        table.add_column("arm", overflow="fold")  # its name may be long, numbers may not be cut
        for name in ("final", "gain", "kept", "seconds", "GB·h", "FLOPs", "per FLOP", "n"):
            table.add_column(name, justify="right", no_wrap=True)
        for arm in group.arms:
            failed = f" ({arm.failed} failed)" if arm.failed else ""
            table.add_row(
                safe(_name(arm.arm)),
                short(score(arm.final)),
                short(signed(arm.gain)),
                short(percent(arm.retained_gain)),
                short(number(arm.seconds)),
                short(number(arm.gamma["memory_gb_hours"], 2)),
                short(number(arm.gamma["flops"])),
                short(times(arm.multiple_of_full["flops"])),
                f"{len(arm.blocks)}{failed}",
            )
        console.print(table)
        console.print(
            f"gain: against {'method head' if group.reference == 'head' else 'base'}, same block; "
            "kept: share of full's gain; per FLOP: multiple of full; n: blocks.\n" + headline(group, safe),
            highlight=False,
        )
        print_retention(console, group)


def safe(text: str) -> str:
    """Return a stranger's text as a terminal shows it: as it stands, and with nothing in it that is obeyed."""
    return escape(plain(text))


def _name(arm: str) -> str:
    """Return an arm's name as a narrow column can break it between words."""
    return arm.replace(" selection=", " ").replace("flops_of=", "flops of ")


def print_retention(console: Console, group: Group) -> None:
    """Print the retention table of a group that has one."""
    table = retention(group)
    if table is None:
        return
    columns = [name for name in page.COLUMNS if name != "seconds"]  # eleven columns fit
    shown = Table(
        title=page.TITLE, title_justify="left", pad_edge=False, show_edge=False, box=None, padding=(0, 1, 0, 0)
    )
    shown.add_column("arm", overflow="fold")
    for name in columns:
        shown.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(safe(_name(row.arm)), *page.cells(row, columns))
    console.print(shown)
    console.print("\n".join(map(safe, page.answer(table))), highlight=False)
