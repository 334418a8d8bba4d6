"""cprbench doctor: what will be measured on this machine, from which source, and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    rates: Annotated[bool, typer.Option("--rates/--no-rates", help="Measure matmul and copy rates too.")] = True,
) -> None:
    """Try every meter for two seconds and say what it gives: value, source and resolution, or the reason and cure."""
    from cprbench.runs.diagnosis import diagnose
    from cprbench.schema import canonical_json

    found = diagnose(with_rates=rates)
    if json_:
        typer.echo(canonical_json(found))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    typer.echo(f"hardware class: {found['hardware_class']}")
    table = Table(box=None, pad_edge=False)
    for name in ("quantity", "source", "resolution"):
        table.add_column(name, no_wrap=name == "quantity")
    for row in found["measured"]:
        table.add_row(escape(row["quantity"]), row["source"], escape(row["resolution"]))
    console.print(table)
    typer.echo("not measured here:")
    for row in found["missing"]:
        console.print(f"  {row['quantity']}: {escape(row['why'])}", highlight=False)
    for name, value in found["rates"].items():
        shown = f"{value['value']:.1f}" if value["value"] is not None else f"not measured: {value['why_missing']}"
        typer.echo(f"{name}: {shown}")
