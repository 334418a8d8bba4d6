"""cprbench reproduce: one record, run again from its own spec, and compared with itself."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from cprbench.errors import StoreError


def reproduce(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A run's folder or its record.json, in a submission too.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the new record goes.")] = Path("reproduced"),
    file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A file that its settings name; several times.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tasks find their own files.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection: caches only.")] = False,
    allow_shared: Annotated[bool, typer.Option("--allow-shared", help="Run on a GPU in use; flagged.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the agreement as JSON.")] = False,
) -> None:
    """Run one record again, under the same id, and say how far it agrees.

    Scores may differ by two standard errors of the paired difference over the test items; FLOPs, counts and sets are
    equal. Exit code 0: reproduced; 1: it differs, or cannot be run here. What ran before in DIR is not run again.

    cprbench reproduce leaderboard/submissions/my-method/runs/00a188e753f43921
    """
    from cprbench.cli.progress import Progress
    from cprbench.judge.agreement import agreement
    from cprbench.render.agreement import document, text
    from cprbench.runs.metering import MeterOptions
    from cprbench.runs.reproduction import reproduce as run_again
    from cprbench.runs.runner import Options
    from cprbench.runs.store import load_run
    from cprbench.schema import canonical_json

    if not record.exists():
        raise StoreError(f"{record}: there is no such run. Name a run's folder, or its record.json.")
    folder = record if record.is_dir() else record.parent
    if (folder / "runs").is_dir():
        raise StoreError(f"{folder} is a submission. Name one of its runs: {folder}/runs/<run id>")
    run = load_run(folder)
    metering = MeterOptions(allow_shared=allow_shared)
    options = Options(out=out, data=data, offline=offline, retry=True, metering=metering)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice is a Ctrl-C
    with Progress() as progress:
        again = run_again(run, options, files=file or [], observe=progress.observe, announce=progress.announce)
    if again.record.status == "interrupted":
        typer.echo("interrupted: the same command starts it again.", err=True)
        raise typer.Exit(130)
    found = agreement(run, again)
    typer.echo(canonical_json(document(found)) if json_ else text(found), nl=json_)
    raise typer.Exit(1 if found.differs else 0)
