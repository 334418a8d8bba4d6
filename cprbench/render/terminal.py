"""The comparison table of a terminal, made for 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cprbench.judge.cpr import Group
from cprbench.render.markdown import headline
from cprbench.render.numbers import number, percent, score, signed, times


def print_groups(console: Console, groups: list[Group]) -> None:
    """Print one table per group, with its answer in a line below."""
    for group in groups:
        key = group.key
        title = f"{key['task']} v{key['task_version']} x {key['model']}, {group.metric} (base " + (
            f"{score(group.arms[0].base)})" if group.arms else "-)"
        )
        table = Table(title=escape(title), title_justify="left", pad_edge=False, show_edge=False, box=None)
        table.add_column("arm", overflow="fold")  # its name may be long, numbers may not be cut
        for name in ("final", "gain", "kept", "seconds", "GB·h", "FLOPs", "per FLOP", "n"):
            table.add_column(name, justify="right", no_wrap=True)
        for arm in group.arms:
            failed = f" ({arm.failed} failed)" if arm.failed else ""
            table.add_row(
                escape(arm.arm),
                _short(score(arm.final)),
                _short(signed(arm.gain)),
                _short(percent(arm.retained_gain)),
                _short(number(arm.seconds)),
                _short(number(arm.gamma["memory_gb_hours"], 2)),
                _short(number(arm.gamma["flops"])),
                _short(times(arm.multiple_of_full["flops"])),
                f"{len(arm.blocks)}{failed}",
            )
        console.print(table)
        console.print(
            f"gain: against {'method head' if group.reference == 'head' else 'base'}, same block; "
            "kept: share of full's gain; per FLOP: multiple of full; n: blocks.\n" + headline(group, escape),
            highlight=False,
        )


def _short(text: str) -> str:
    """Return a cell that fits: the report has the reasons in full."""
    if text.startswith("n/e"):
        return "n/e"
    return text if text[:1].isdigit() or text[:1] in "+-" else "-" if text.startswith("no ") else "n/m"
