"""cprbench blueprint: its verbs, and those that read files. Reading and using work where torch is not installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprbench.cli import blueprint_making, blueprint_use
from cprbench.cli.blueprint_use import File, Json, echo_json, write
from cprbench.errors import CprbenchError, SpecError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from cprbench.blueprint.schema import Blueprint

app = typer.Typer(
    help="Gradient blueprints: make, read, check, compare and use files of submodule statistics.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("create")(blueprint_making.create)
app.command("audit")(blueprint_making.audit)
app.command("pick")(blueprint_use.pick)
app.command("export")(blueprint_use.export)

_COLUMNS = 4  # (domain, kind) pairs that fit 80 columns


@app.command()
def show(
    file: File,
    domain: Annotated[str, typer.Option(help="Show this domain only.")] = "",
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Write the heat map as a page instead.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show where gradients are large, what the file recommends, where its numbers come from and what it lacks."""
    from cprbench.blueprint import files
    from cprbench.render import heatmap

    blueprint = files.read(file)
    tags = heatmap.domains_of(blueprint)
    if domain and domain not in tags:
        raise SpecError(f"{file} has no domain {domain!r}. {did_you_mean(domain, tags)}")
    tags = [domain] if domain else tags
    if html is not None:
        if domain or json_:
            raise SpecError("the page of --html shows every domain. Leave out --domain and --json.")
        write(html, heatmap.html(blueprint), (file,))
        typer.echo(f"{html}")
        return
    if json_:
        told = {
            "model_id": blueprint.model_id,
            "training_checkpoint": blueprint.training_checkpoint,
            "weights_sha256": blueprint.model.weights_sha256 if blueprint.model else None,
            "k_star": blueprint.k_star,
            "k_star_why": blueprint.k_star_why,
            "alpha": blueprint.concentration.alpha if blueprint.concentration else None,
            "share_of_squared_norm": {tag: heatmap.shares(blueprint, tag) for tag in tags},
            "made": blueprint.made.model_dump() if blueprint.made else None,
            "lacks": blueprint.lacks(),
        }
        echo_json(told)
        return
    console = _console()
    _facts(console, heatmap.facts(blueprint))
    _heat(console, blueprint, tags)
    lacks = blueprint.lacks()
    console.print("\nthe file lacks:" if lacks else "\nthe file lacks nothing")
    for sentence in lacks:
        console.print(f"  {sentence}")


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Blueprint files.")],
    model: Annotated[str, typer.Option(help="Also check the files against this model (needs torch).")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of data files, for --model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection, for --model.")] = False,
    json_: Json = False,
) -> None:
    """Say of every file whether it is valid, and what it lacks. Exit code 0: all are; 1: some are not."""
    from cprbench.blueprint import files

    found: list[dict[str, Any]] = []
    read: dict[int, Blueprint] = {}
    for path in paths:
        found.append({"file": str(path), "errors": [], "notes": [], "lacks": []})
        try:
            read[len(found) - 1] = files.read(path)
            found[-1]["lacks"] = read[len(found) - 1].lacks()
        except SpecError as error:
            found[-1]["errors"] = str(error).splitlines()
    live = _inspected(list(read.values()), model, data, offline) if model and read else None
    for i, blueprint in read.items() if live else ():
        try:
            found[i]["notes"] = files.check_model(blueprint, **live or {})
        except SpecError as error:
            found[i]["errors"] = str(error).splitlines()
    for entry in found:
        entry["valid"] = not entry["errors"]
    if json_:
        echo_json({"files": found})
    else:
        for entry in found:
            typer.echo(f"{entry['file']}: {'valid' if entry['valid'] else 'not valid'}")
            for kind, sentences in (("error", entry["errors"]), ("note", entry["notes"]), ("lacks", entry["lacks"])):
                for sentence in sentences:
                    typer.echo(f"{entry['file']}: {kind}: {sentence.removeprefix(entry['file'] + ': ')}")
    if not all(entry["valid"] for entry in found):
        raise typer.Exit(1)


def _inspected(blueprints: list[Blueprint], model: str, data: Path | None, offline: bool) -> dict[str, Any]:
    """Return what a model is, in check_model's words; a child loads its shape."""
    import importlib.util

    from cprbench.runs import runner
    from cprbench.tasks import known_tasks, load_task

    if importlib.util.find_spec("torch") is None:
        raise CprbenchError("--model asks torch for the model's shape. Run: pip install 'cprbench[train]'")
    named = [domain.task for blueprint in blueprints for domain in blueprint.domains]
    task = next((name for name in named if name in known_tasks()), "movie-snippets")  # any will do: heads do not count
    found = runner.inspect(load_task(task), model, runner.Options(data=data, offline=offline))
    told = {"weights_sha256": found.model.weights_sha256, "revision": found.model.revision}
    return {**told, "sizes": found.sizes, "model": found.model.label}


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(metavar="LEFT")],
    right: Annotated[Path, typer.Argument(metavar="RIGHT")],
    k: Annotated[float, typer.Option(help="Share of parameters whose picks are compared.")] = 0.15,
    json_: Json = False,
) -> None:
    """Say whether two files of one model's shape, say of two checkpoints, show the same pattern."""
    from dataclasses import asdict

    from cprbench.blueprint import drift, files
    from cprbench.render.heatmap import told

    found = drift.compare(files.read(left), files.read(right), k)
    if json_:
        echo_json(asdict(found))
        return
    typer.echo(f"{found.verdict}: {found.why}")
    typer.echo(f"Spearman {told(found.correlation)}, Kendall {told(found.kendall)}, over all submodules")
    typer.echo(f"overlap of what k = {k:g} picks by norm: {told(found.overlap)} of the parameters that either takes")
    for tag, correlation in found.domains.items():
        typer.echo(f"Spearman in domain {tag}: {told(correlation)}")


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Blueprint files.")],
    out: Annotated[Path | None, typer.Option(metavar="TABLE.csv|.json", help="Where the table goes.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Put many files into one table, a row per submodule and domain; files that contradict one another are refused."""
    from cprbench.blueprint import merge as merging

    writers = {".csv": merging.to_csv, ".json": merging.to_json}
    if out is None and not json_:
        raise SpecError("the table goes nowhere. Pass --out TABLE.csv, --out TABLE.json or --json.")
    if out is not None and out.suffix not in writers:
        raise SpecError(f"--out {out}: a table ends in .csv or .json.")
    rows = merging.merge(paths)
    if out is not None:
        write(out, writers[out.suffix](rows), paths)
        typer.echo(f"{out}: {len(rows)} rows of {len(paths)} files", err=json_)
    if json_:
        typer.echo(merging.to_json(rows), nl=False)


# --- printing -------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    console.print(table)


def _heat(console: Console, blueprint: Blueprint, tags: list[str]) -> None:
    """Print layer x (domain, kind) as bars of the share of squared norm, some domains beside one another."""
    from rich.table import Table
    from rich.text import Text

    from cprbench.render import heatmap

    kinds, rows, apart = heatmap.grid(blueprint)
    beside = max(1, _COLUMNS // max(1, len(kinds)))
    for at in range(0, len(tags), beside):
        found = {tag: heatmap.shares(blueprint, tag) for tag in tags[at : at + beside]}
        table = Table(title="\nshare of squared gradient norm, %", title_justify="left", box=None, pad_edge=False)
        table.add_column("layer", overflow="fold", max_width=16)
        for tag in found:
            for kind in kinds or [""]:
                table.add_column(Text(f"{tag[:12]} {kind}"), no_wrap=True)

        def bar(tag: str, name: str | None, found: Mapping[str, Any] = found) -> Text:
            share = None if found[tag] is None or name is None else found[tag][name]
            if share is None:
                return Text("not told")
            return Text(f"{'█' * heatmap.step(share):·<6} {heatmap.percent(share):>5}")

        for index, names in rows:
            table.add_row(index, *(bar(tag, name) for tag in found for name in names))
        for name in apart:
            cells = [Text("")] * (max(1, len(kinds)) - 1)
            table.add_row(Text(name), *(cell for tag in found for cell in (bar(tag, name), *cells)))
        console.print(table)
    edges = ", ".join(f"{100 * edge:g}" for edge in heatmap.EDGES)
    console.print(f"a bar grows by one at {edges} %")
