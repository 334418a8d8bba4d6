"""cprbench report: render records."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cprbench.errors import SpecError, StoreError, did_you_mean

if TYPE_CHECKING:
    from cprbench.judge.claims import Claim
    from cprbench.judge.evidence import Evidence
    from cprbench.render.formats.writing import Writing

#: The names of render/formats/writing.py's FORMATS, and the file that a format prints where there is no folder.
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

    if json_ and (format_ or out is not None):
        raise SpecError(
            "--json prints the comparison: leave --format and --out away, or write --format json --out DIR."
        )
    names = ["json"] if json_ else list(dict.fromkeys(name.strip() for name in format_.split(",") if name.strip()))
    for name in names:
        if name not in FORMATS:
            raise SpecError(f"unknown format {name!r}. {did_you_mean(name, FORMATS)}")
    if out is None and (len(names) > 1 or any(FORMATS[name] is None for name in names)):
        raise SpecError(f"--format {','.join(names)} makes files: pass --out DIR.")
    with _without_collecting():
        found = gather(runs)
        for why in found.damaged.values():
            typer.echo(f"damaged: {why}", err=True)
        if out is None and not names:
            _print(found, claims)
        elif out is None:
            shown = _writing(found, claims).files(names[0])[str(FORMATS[names[0]])]
            typer.echo(shown, nl=False)
        else:
            _write_all(_writing(found, claims), names or ["html"], out)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Pause the collector: the rows of hundreds of runs live until the end, and looking for rings among them again and
    again takes a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _writing(found: Evidence, claims: str | None) -> Writing:
    from cprbench.render.formats.writing import Writing

    return Writing(found, _claims(claims))


def _write_all(writing: Writing, names: Sequence[str], out: Path) -> None:
    """Write the files of formats into a folder, and print where they are."""
    for name in names:
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


def _print(found: Evidence, claims: str | None) -> None:
    """Print the tables of the terminal, and the verdicts of claims that were asked for by name."""
    from rich.console import Console

    from cprbench.judge.claims import check
    from cprbench.judge.cpr import compare
    from cprbench.render.terminal import print_groups
    from cprbench.render.verdicts import text

    asked = [] if claims is None else _claims(claims)
    groups = compare(found.records, found.predictions)
    if not groups:
        typer.echo("There are no runs to report.")
    print_groups(Console(), groups)
    if asked:
        typer.echo(f"\n{text(check(asked, found, groups))}", nl=False)
