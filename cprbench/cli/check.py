"""cprbench check: do claims hold on these runs, and did anything get worse?"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cprbench.errors import CprbenchError, SpecError, did_you_mean

if TYPE_CHECKING:
    from cprbench.judge.verdicts import Verdict

FORMATS = ("text", "json", "junit", "github")


def check(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs; blueprints may lie beside them.")],
    claims: Annotated[
        str | None, typer.Option(metavar="FILE", help="Claims: a TOML file, or a name in claims/. Default: paper.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="RUNS", help="Earlier runs: did anything get worse?")] = None,
    claim: Annotated[str, typer.Option(help="Ids of claims to check, separated by commas; default all.")] = "",
    axes: Annotated[str, typer.Option(help="With --baseline: psi, counted, or names of costs, by commas.")] = "",
    margin: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=M", help="With --baseline: psi=0.01, seconds=0.1, …")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="text, json, junit or github.")] = "text",
    json_: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of printing.")] = None,
) -> None:
    """Answer claims from records, or compare runs with earlier ones.

    Exit code 0: all hold; 1: a claim is refuted or something regressed; 2: something could not be measured. In a GitHub
    job the text is followed by annotations, and the job gets a summary.

    cprbench check runs/ --claims paper

    cprbench check runs/ --baseline main-runs/ --axes psi,counted --format junit --out check.xml
    """
    from cprbench.judge.verdicts import exit_code

    try:
        kind = "json" if json_ else format_
        if kind not in FORMATS:
            raise SpecError(f"--format {kind!r}. {did_you_mean(kind, FORMATS)}")
        verdicts = _verdicts(runs, claims, baseline, claim, axes, margin or [])
        shown = _render(verdicts, kind)
        if out is not None:
            out.write_text(shown, encoding="utf-8")
        else:
            typer.echo(shown, nl=False)
        in_job = os.environ.get("GITHUB_ACTIONS") == "true" and kind == "text"
        if in_job:
            typer.echo(_render(verdicts, "github"), nl=False)
        if (page := os.environ.get("GITHUB_STEP_SUMMARY")) and (in_job or kind == "github"):
            with Path(page).open("a", encoding="utf-8") as stream:
                stream.write(_render(verdicts, "summary"))
    except Exception as error:  # not 1, of whatever kind: that would say that something was refuted
        if not isinstance(error, CprbenchError | OSError):
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(exit_code(verdicts))


def _verdicts(
    runs: Path, claims: str | None, baseline: Path | None, chosen: str, axes: str, margins: list[str]
) -> list[Verdict]:
    from cprbench.judge import claims as judge
    from cprbench.judge.cpr import COUNTED
    from cprbench.judge.evidence import gather
    from cprbench.judge.regression import regressions

    if baseline is not None and (claims is not None or chosen):
        raise SpecError("--claims and --baseline are two questions. Ask them one at a time.")
    if baseline is None and (axes or margins):
        raise SpecError("--axes and --margin are of --baseline. Name the earlier runs.")
    evidence = gather(runs)
    for why in evidence.damaged.values():
        typer.echo(f"damaged: {why}", err=True)
    if baseline is None:
        known = {claim.id: claim for claim in judge.load_claims(claims or "paper")}
        ids = list(dict.fromkeys(name.strip() for name in chosen.split(",") if name.strip())) or list(known)
        for name in ids:
            if name not in known:
                raise SpecError(f"unknown claim {name!r}. {did_you_mean(name, known)}")
        found = judge.check(list(known.values()), evidence)  # all: Holm's family is the file's, whatever is shown
        return [verdict for verdict in found if verdict.id in ids]
    earlier = gather(baseline)
    for why in earlier.damaged.values():
        typer.echo(f"damaged, in the baseline: {why}", err=True)
    names = [name.strip() for name in axes.split(",") if name.strip()]
    wanted = [axis for name in names for axis in (COUNTED if name == "counted" else (name,))]
    return regressions(evidence, earlier, axes=wanted or None, margins=dict(map(_margin, margins)))


def _margin(text: str) -> tuple[str, float]:
    axis, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise SpecError(f"--margin {text!r}: write AXIS=NUMBER, for example psi=0.01 or seconds=0.1.")
    return axis, number


def _render(verdicts: list[Verdict], kind: str) -> str:
    from cprbench.judge import statistics
    from cprbench.render import verdicts as page
    from cprbench.schema import canonical_json

    if kind == "json":
        made = {"version": statistics.VERSION, "seed": statistics.SEED, "resamples": statistics.RESAMPLES}
        return canonical_json(page.document(verdicts) | {"statistics": made}) + "\n"
    pages = {"text": page.text, "junit": page.junit, "github": page.github_annotations, "summary": page.job_summary}
    return pages[kind](verdicts)
