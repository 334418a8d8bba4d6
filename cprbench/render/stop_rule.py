"""A replay of the stop rule (a cprbench.stop-rule-replay/1 document): a table of 80 columns, a figure and a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape as xml
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cprbench.errors import CprbenchError
from cprbench.judge.groups import Figure
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
    try:
        import matplotlib
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise CprbenchError(
            f"the figure needs matplotlib ({error}): pip install matplotlib, or leave --out away"
        ) from None
    points, resource = document["points"], _plain(document["resource"])
    spent = [point["gamma"] for point in points]
    # Text stays text (a reader can search it); ids come from a fixed salt instead of chance.
    with matplotlib.rc_context({"svg.hashsalt": "cprbench", "svg.fonttype": "none"}):
        drawing = Drawing(figsize=(7, 6), layout="constrained")
        curve, ratio = drawing.subplots(2, 1, sharex=True)
        curve.plot(spent, [point["psi"] for point in points], marker=".", color="black")
        curve.set_ylabel(f"psi = {_plain(_psi(document))}".replace(" (", "\n("))  # a long label is cut at the edge
        windows = [(point["gamma"], point["ratio"]) for point in points if point["ratio"] is not None]
        ratio.plot([gamma for gamma, _ in windows], [value for _, value in windows], marker=".", color="black")
        ratio.axhline(0, color="0.7", linewidth=0.8)
        ratio.set_ylabel("psi gained per unit, over the window")
        ratio.set_xlabel(resource)
        for number_, row in enumerate(document["replays"]):
            if row["stopped_at"] is not None:
                style = ("--", "-.", ":")[number_ % 3]  # lines differ without colour too
                for axes in (curve, ratio):
                    axes.axvline(row["gamma"], linestyle=style, color=f"C{number_}", label=f"eta = {row['eta']}")
        if any(row["stopped_at"] is not None for row in document["replays"]):
            curve.legend(title="stops at")
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    title = xml(f"Stop rule: {_psi(document)} per {document['resource']}")
    told = "; ".join(_sentence(row, document["resource"]) for row in document["replays"])
    labels = f'<title id="title">{title}</title>\n<desc id="desc">{xml(f"{_lead(document)}. {told}.")}</desc>\n'
    head, rest = text.getvalue().split("<svg ", 1)
    attributes, body = rest.split(">", 1)
    return f'{head}<svg role="img" aria-labelledby="title desc" {attributes}>\n{labels}{body.lstrip()}'


def _sentence(row: Mapping[str, Any], resource: str) -> str:
    if row["stopped_at"] is None:
        return f"eta {row['eta']} never stops"
    saved, lost = percent(Figure(row["saved"])), number(Figure(row["lost"]))
    return f"eta {row['eta']} stops at {row['stopped_at']}, saves {saved} of {resource}, loses {lost} of psi"


def _plain(text: str) -> str:
    """Return text that matplotlib sets as it stands, not as a formula."""
    return text.replace("$", r"\$")
