"""cprbench measure: meter any command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def measure(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The command, after two dashes.")],
    psi_file: Annotated[Path | None, typer.Option(help="JSON file of scores that the command writes.")] = None,
    task: Annotated[str, typer.Option(help="What it adapts to, in your words.")] = "external",
    model: Annotated[str, typer.Option(help="What it adapts, in your words.")] = "external",
    arm: Annotated[str, typer.Option(help="The arm's name in reports.")] = "external",
    block: Annotated[int, typer.Option(min=0, help="Which repetition this is.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("runs"),
    country: Annotated[str, typer.Option(help="ISO-3 code for the carbon intensity, e.g. FRA.")] = "",
    carbon_intensity: Annotated[float | None, typer.Option(help="Carbon intensity in g CO2 per kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    allow_shared: Annotated[bool, typer.Option("--allow-shared", help="Run on a GPU in use; flagged.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Run a command, its whole process tree metered, and write a full record marked `external loop`.

    Exit code 0: the command ended well and wrote its scores; 1: it did not (the record says why).
    """
    from cprbench.meters.carbon import factors
    from cprbench.render.numbers import resource_lines
    from cprbench.runs.external import measure_command
    from cprbench.runs.metering import MeterOptions

    record = measure_command(
        command,
        task=task,
        model=model,
        method=arm,
        block=block,
        out=out,
        psi_file=psi_file,
        quiet=json_,
        metering=MeterOptions(carbon=factors(country or None, carbon_intensity, pue), allow_shared=allow_shared),
    )
    if json_:
        typer.echo(record.model_dump_json(by_alias=True))
    else:
        typer.echo(f"{record.status}: {out / record.run_id} ({record.seconds['billed']:.1f} s)")
        for line in resource_lines(record):
            typer.echo(line)
    if record.status != "ok":
        typer.echo(f"{record.status}: {record.error}", err=True)
        raise typer.Exit(130 if record.status == "interrupted" else 1)
