"""cprbench leaderboard: the static site of a folder of submissions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The static leaderboard of a folder of submissions.")
_SUBMISSIONS = Path("leaderboard/submissions")


@app.command("build")
def build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the site.")],
    submissions: Annotated[Path, typer.Option(metavar="DIR", help="Folder of submissions.")] = _SUBMISSIONS,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tasks find their own files.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch no references of tasks.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Validate what is new, and write the pages that changed: the same bytes for the same submissions.

    cprbench leaderboard build --out site/
    """
    from collections import Counter
    from dataclasses import asdict

    from cprbench.judge.submission import Entry
    from cprbench.render.site.writing import write
    from cprbench.render.text import plain
    from cprbench.schema import canonical_json
    from cprbench.submissions.shelf import entries

    fresh = Counter[bool]()

    def observe(entry: Entry, now: bool) -> None:
        fresh[now] += 1
        if entry.status != "consistent":
            typer.echo(f"{plain(entry.folder)}: {entry.status}", err=True)
        elif now:
            typer.echo(f"{plain(entry.folder)}: validated", err=True)

    found = entries(submissions, data=data, offline=offline, observe=observe)
    written = write(found, out)
    rows = [row for entry in found for row in entry.rows]
    told = {"submissions": len(found), "validated": fresh[True], "rows": len(rows)}
    told |= {"ranked": sum(row.ranked for row in rows), **asdict(written)}
    if json_:
        typer.echo(canonical_json(told))
        return
    typer.echo(
        f"{out / 'index.html'}: {told['submissions']} submissions ({told['validated']} validated now), {told['rows']} "
        f"rows, {told['ranked']} of them rank; {written.files} files, {written.written} written, {written.removed} "
        "removed."
    )


@app.command("changes")
def changes(
    base: Annotated[Path, typer.Option(metavar="DIR", help="The submissions that the board has.")],
    head: Annotated[Path, typer.Option(metavar="DIR", help="The submissions that it would have.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tasks find their own files.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch no references of tasks.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Print what a pull request changes on the board, as a Markdown comment. Nothing in either folder is run.

    Exit code 1: a submission that is new or changed is invalid or contradicted by its own files.
    """
    from cprbench.render.site import changes as compared
    from cprbench.schema import canonical_json
    from cprbench.submissions.shelf import entries

    before, after = (entries(folder, data=data, offline=offline) for folder in (base, head))
    found = compared.changes(before, after)
    typer.echo(canonical_json(found.document()) if json_ else compared.markdown(found), nl=json_)
    raise typer.Exit(1 if found.refused else 0)


@app.command("serve")
def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A site that `leaderboard build` wrote.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
) -> None:
    """Serve a built site to this machine alone, until Ctrl-C."""
    from contextlib import suppress

    from cprbench.render.site.serving import ADDRESS, open_server

    with open_server(folder, port) as server, suppress(KeyboardInterrupt):
        typer.echo(f"http://{ADDRESS}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()
