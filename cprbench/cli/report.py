"""cprbench report: render records."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cprbench.errors import SpecError, StoreError, did_you_mean

if TYPE_CHECKING:
    from cprbench.judge.claims import Claim
    from cprbench.judge.evidence import Evidence

#: The names of render/report/writing.py's FORMATS, and the file that a format prints where there is no folder.
FORMATS = {"html": None, "md": "report.md", "latex": None, "csv": "runs.csv", "json": "comparison.json"}
_USUAL = "paper"
_MOST_NAMED = 12  # files of a folder are named one by one


def report(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run.")],
    format_: Annotated[str, typer.Option("--format", help="html, md, latex, csv, json: one or more, by commas.")] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the files.")] = None,
    claims: Annotated[
        str | None, typer.Option(metavar="FILE", help="Claims to answer: a TOML file or a name in claims/, or none.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Render records: no torch, no network, the same bytes for the same records.

    Without --format and --out, tables for the terminal. Without --out, one of md, csv or json is printed.

    cprbench report runs/ --format html,md,latex,csv,json --out pages/
    """
    from cprbench.judge.evidence import gather

    names = ["json"] if json_ else list(dict.fromkeys(name.strip() for name in format_.split(",") if name.strip()))
    for name in names:
        if name not in FORMATS:
            raise SpecError(f"unknown format {name!r}. {did_you_mean(name, FORMATS)}")
    if out is None and (len(names) > 1 or any(FORMATS[name] is None for name in names)):
        raise SpecError(f"--format {','.join(names)} makes files: pass --out DIR.")
    found = gather(runs)
    for why in found.damaged.values():
        typer.echo(f"damaged: {why}", err=True)
    if out is None and not names:
        _print(found)
        return
    from cprbench.render.report.writing import Writing

    writing = Writing(found, _claims(claims))
    if out is None:
        files = writing.files(names[0])
        typer.echo(files[str(FORMATS[names[0]])].decode(), nl=False)
        return
    for name in names or ["html"]:
        written = []
        for path, content in writing.files(name).items():
            _write(out / path, content)
            written.append(out / path)
        for folder, together in groupby(written, lambda path: path.parent):
            paths = list(together)
            shown = [f"{folder}/ ({len(paths)} files)"] if len(paths) > _MOST_NAMED else map(str, paths)
            typer.echo("\n".join(shown))


def _claims(name: str | None) -> list[Claim]:
    """Return the claims to answer; the paper's own need not be there, those that were named do."""
    from cprbench.judge.claims import load_claims

    if name == "none":
        return []
    try:
        return load_claims(name or _USUAL)
    except SpecError:
        if name is not None:
            raise
        return []


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{path}: cannot write ({error.strerror or error}). Pass another --out DIR.") from None


def _print(found: Evidence) -> None:
    from rich.console import Console

    from cprbench.judge.cpr import compare
    from cprbench.render.terminal import print_groups

    groups = compare(found.records, found.predictions)
    if not groups:
        typer.echo("There are no runs to report.")
    print_groups(Console(), groups)
