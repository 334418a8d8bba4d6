"""cprbench pack and cprbench validate: runs as a submission, and a submission recomputed from its raw files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: What a verdict says to a shell: 0 consistent, 1 refused, 2 something could not be recomputed here.
EXIT = {"consistent": 0, "invalid": 1, "contradicted": 1, "unverified": 2}


def pack(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs.")],
    name: Annotated[str, typer.Option(help="Of the submission: small letters, digits, . _ -")],
    author: Annotated[list[str], typer.Option(help="Who answers for it; may be given several times.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or a new .zip.")],
    division: Annotated[str, typer.Option(help="closed: the suite's own recipe; open: your own.")] = "closed",
    license_: Annotated[str, typer.Option("--license", help="Of the records, as an SPDX identifier.")] = "CC-BY-4.0",
    link: Annotated[list[str] | None, typer.Option(help="A paper or code, http or https; several times.")] = None,
    description: Annotated[str, typer.Option(help="What is new about it.")] = "",
    file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="A blueprint that guided runs, if not beside them."
        ),
    ] = None,
) -> None:
    """Pack runs as a submission. Raw files are copied as they are; kept weights and logs stay behind.

    cprbench pack runs/ --name my-method --author "Ada Lovelace" --out leaderboard/submissions/my-method
    """
    from cprbench.submissions.packing import pack as write

    said = {"license_": license_, "division": division, "links": link or [], "description": description}
    packed = write(runs, out, name=name, authors=author, files=file or [], **said)  # type: ignore[arg-type]
    typer.echo(f"{out}: {len(packed)} runs. Next: cprbench validate {out}")
    if out.name.removesuffix(".zip") != name:
        typer.echo(f"On a board it has to be called {name}: leaderboard/submissions/{name}", err=True)


def validate(
    submission: Annotated[Path, typer.Argument(metavar="DIR_OR_ZIP", help="What `cprbench pack` wrote.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where tasks find their own files.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch no references of tasks.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the entry as JSON.")] = False,
) -> None:
    """Recompute a submission from its raw files. Nothing in it is run, and no torch is needed.

    Exit code 0: consistent; 1: invalid or contradicted by its own files; 2: something could not be recomputed here.

    cprbench validate leaderboard/submissions/my-method --data data/
    """
    from cprbench.render.entries import text
    from cprbench.schema import canonical_json
    from cprbench.submissions.rules import RULES
    from cprbench.submissions.validation import BUNDLE_RULES
    from cprbench.submissions.validation import validate as check

    entry = check(submission, data=data, offline=offline)
    titles = {rule.code: rule.title for rule in (*BUNDLE_RULES, *RULES)}
    typer.echo(canonical_json(entry.model_dump(mode="json", by_alias=True)) if json_ else text(entry, titles), nl=json_)
    raise typer.Exit(EXIT[entry.status])
