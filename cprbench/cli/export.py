"""cprbench export: a run's adapted model as a plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run made with --save delta.")],
    merge: Annotated[Path, typer.Option(metavar="DIR", help="Where the merged model goes: a new folder.")],
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection: caches only.")] = False,
) -> None:
    """Merge what a run trained into its base model; plain from_pretrained loads the folder."""
    from cprbench.runs.runner import export as export_run

    typer.echo(f"{export_run(run, merge, offline=offline)}")
