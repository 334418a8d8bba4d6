"""A replay of the stop rule (a cprbench.stop-rule-replay/1 document): a table of 80 columns, a figure and a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cprbench.judge.groups import Figure
from cprbench.render.document import Drawing
from cprbench.render.figures.saving import svg
from cprbench.render.figures.style import INK, SOFT, looks, scale
from cprbench.render.numbers import number, percent

_COLUMNS = ("eta", "window", "patience", "stopped_at", "gamma", "saved", "psi", "lost", "lost_share", "why")


def print_replay(console: Console, document: Mapping[str, Any]) -> None:
    """Print where each eta would have stopped, what that saved and lost, and what the replay cannot tell."""
    resource, psi = document["resource"], _psi(document)
    console.print(escape(f"stop rule on {document['curve']}\n{_lead(document)}"), highlight=False)
    table = Table(pad_edge=False, show_edge=False, box=None)
    table.add_column("eta")
    table.add_column("stops at", overflow="fold")
    for column in ("spent", "saved", "psi", "lost", "of gain"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in document["replays"]:
        table.add_row(
            str(row["eta"]),
            escape("never" if row["stopped_at"] is None else row["stopped_at"]),
            number(Figure(row["gamma"])),
            percent(Figure(row["saved"])),
            number(Figure(row["psi"])),
            number(Figure(row["lost"])),
            percent(Figure(row["lost_share"], "n/e")),
        )
    console.print(table)
    never: dict[str, list[str]] = {}
    for row in document["replays"]:
        if row["stopped_at"] is None:
            never.setdefault(row["why"], []).append(str(row["eta"]))
    whys = {row["lost_share_why"] for row in document["replays"] if row["lost_share_why"]}
    notes = [
        f"spent: {resource} when it stops, saved: share of the curve's that is left; psi: {psi} there, lost: what it "
        "rises by until the curve's end (below 0: it falls), also as a share of the curve's gain.",
        *(f"n/e: {why}." for why in sorted(whys)),
        *(f"eta {', '.join(etas)} {why}." for why, etas in never.items()),
        *(f"warning: {text}" for text in document["warnings"]),
    ]
    console.print(escape("\n".join(notes)), highlight=False)


def _psi(document: Mapping[str, Any]) -> str:
    return f"minus {document['psi']} (lower is better)" if document["negated"] else str(document["psi"])


def _lead(document: Mapping[str, Any]) -> str:
    rule = document["replays"][0]
    return (
        f"{len(document['points'])} checks; psi = {_psi(document)}, per {document['resource']}; "
        f"window {rule['window']}, patience {rule['patience']}"
    )


def replay_csv(document: Mapping[str, Any]) -> str:
    """Return one line per eta; an empty cell is a number that does not exist."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["replays"])
    return text.getvalue()


def replay_svg(document: Mapping[str, Any]) -> str:
    """Return the figure: psi and the window ratio over what was spent, with a line where each eta stops.

    The same bytes for the same document and matplotlib. Raises CprbenchError where matplotlib is not installed.
    """
    points, resource = document["points"], document["resource"]
    windows = [(point["gamma"], point["ratio"]) for point in points if point["ratio"] is not None]
    stops = [row for row in document["replays"] if row["stopped_at"] is not None]

    def draw(figure: Any) -> None:
        curve, ratio = figure.subplots(2, 1, sharex=True)
        curve.plot([point["gamma"] for point in points], [point["psi"] for point in points], marker=".", color=INK)
        curve.set_ylabel(f"psi = {_psi(document)}".replace(" (", "\n("))  # a long label is cut at the edge
        ratio.plot(*zip(*windows, strict=True), marker=".", color=INK) if windows else None
        ratio.axhline(0, color=SOFT, linewidth=0.8)
        ratio.set_ylabel("psi gained per unit,\nover the window")
        ratio.set_xlabel(resource)
        scale(ratio, "x", ())
        scale(ratio, "y", ())
        for row, look in zip(stops, looks([str(i) for i in range(len(stops))]).values(), strict=True):
            for axes in (curve, ratio):
                axes.axvline(row["gamma"], linestyle=look.dash, color=look.colour, label=f"eta = {row['eta']}")
        if stops:
            curve.legend(title="stops at")

    told = "; ".join(_sentence(row, resource) for row in document["replays"])
    title = f"Stop rule: {_psi(document)} per {resource}"
    return svg(Drawing("stop-rule", title, f"{_lead(document)}. {told}.", draw, (7, 6)), alone=True)


def _sentence(row: Mapping[str, Any], resource: str) -> str:
    if row["stopped_at"] is None:
        return f"eta {row['eta']} never stops"
    saved, lost = percent(Figure(row["saved"])), number(Figure(row["lost"]))
    return f"eta {row['eta']} stops at {row['stopped_at']}, saves {saved} of {resource}, loses {lost} of psi"
