"""cprbench report: render records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cprbench.errors import SpecError, did_you_mean

FORMATS = ("md",)


def report(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run.")],
    format_: Annotated[str, typer.Option("--format", help="Formats, separated by commas: md.")] = "md",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; without it the report is printed.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead.")] = False,
) -> None:
    """Render a report from records alone: no torch, no network, the same bytes for the same records."""
    from cprbench.judge.evidence import gather
    from cprbench.render.markdown import render_report

    for name in format_.split(","):
        if name not in FORMATS:
            raise SpecError(f"unknown format {name!r}. {did_you_mean(name, FORMATS)}")
    found = gather(runs)
    for why in found.damaged.values():
        typer.echo(f"damaged: {why}", err=True)
    if json_:
        import dataclasses

        from cprbench.judge.cpr import compare
        from cprbench.judge.curves import curves
        from cprbench.judge.retention import retention
        from cprbench.schema import canonical_json

        groups = []
        for group in compare(found.records, found.predictions):
            table = retention(group)
            shown = dataclasses.asdict(group, dict_factory=_without_working)
            shown["curves"] = _infinite_as_word(dataclasses.asdict(curves(group, found), dict_factory=_without_working))
            shown["retention"] = None if table is None else dataclasses.asdict(table)
            for name in ("failures", "records"):
                shown[name] = [record.run_id for record in shown[name]]
            groups.append(shown)
        typer.echo(canonical_json({"groups": groups, "damaged": found.damaged}))
        return
    text = render_report(found.records, found.damaged, found)
    if out is None:
        typer.echo(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text, encoding="utf-8")
    typer.echo(f"{out / 'report.md'}")


def _without_working(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dataclass as a dict without what an estimate keeps for its p-values."""
    return {name: value for name, value in pairs if name != "means"}


def _infinite_as_word(part: Any) -> Any:
    """Return a document in which a target that was never reached costs "infinite": JSON has no such number."""
    if isinstance(part, dict):
        return {name: _infinite_as_word(value) for name, value in part.items()}
    return "infinite" if part == float("inf") else part
