"""cprbench stop-rule: where the stop rule would have stopped a curve that exists."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cprbench.errors import DataError, TrainingError

app = typer.Typer(help="When to stop: psi gained per resource, over a moving window.", no_args_is_help=True)

_ALWAYS = (
    "a replay holds for the learning-rate schedule that made the curve. Where the rate decays, the last ratios are "
    "small because the rate is, and a run that stopped early would have had another schedule."
)
_DECAYED = (
    "this run's learning rate decayed to its end (training.schedule linear), so what is saved and lost here describes "
    "the curve and does not forecast a run that stops. Replay one with training.schedule=constant."
)
_UNBILLED = (
    "this run did not bill its validations; one that stops by the rule does, so it saves less than is shown here."
)


@app.callback()
def _group() -> None:
    """When to stop: psi gained per resource, over a moving window."""


@app.command("replay")
def replay(
    curve: Annotated[Path, typer.Argument(metavar="CURVE", help="A CSV with a header, a history.jsonl, or a run.")],
    eta: Annotated[
        str, typer.Option(help="Psi per resource (3e-15) or of the largest ratio (0.1x); several with commas.")
    ] = "0.05x,0.1x,0.2x",
    window: Annotated[int, typer.Option(help="Steps between checks that a ratio is averaged over.")] = 3,
    patience: Annotated[int, typer.Option(help="Successive checks that must lie below eta.")] = 2,
    psi: Annotated[str, typer.Option(help="Column of the score (default: psi; of a run, its primary metric).")] = "",
    resource: Annotated[str, typer.Option(help="Column of what was spent so far.")] = "flops",
    out: Annotated[Path | None, typer.Option(help="Folder for stop-rule.svg and stop-rule.csv.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say where each eta would have stopped a curve, and what that would have saved and lost."""
    from rich.console import Console

    from cprbench.adapt import stopping
    from cprbench.render.stop_rule import print_replay, replay_csv, replay_svg
    from cprbench.schema import canonical_json
    from cprbench.spec import falls

    rows, primary, warnings = _read(curve)
    psi = psi or primary
    points = _points(curve, rows, psi, resource)
    sign = -1 if falls(psi) else 1
    fed = [(None if value is None else sign * value, gamma) for _, value, gamma in points]
    replays, shown = [], []
    for text in eta.split(","):
        rule = stopping.StopRule(text.strip(), window, patience, resource)
        try:
            found = stopping.replay(fed, rule)
        except TrainingError as error:
            row = f", {points[rule.told()['checks'] - 1][0]}" if rule.points else ""
            raise DataError(f"{curve}{row}: {error}") from None
        stopped = found["stopped_at"]
        replays.append(found | {"stopped_at": None if stopped is None else points[stopped - 1][0]})
        shown = [{"at": points[p.check - 1][0], "psi": p.psi, "gamma": p.gamma, "ratio": p.ratio} for p in rule.points]
    document = {
        "schema": "cprbench.stop-rule-replay/1",
        "curve": str(curve),
        "psi": psi,
        "negated": sign < 0,
        "resource": resource,
        "points": shown,
        "replays": replays,
        "warnings": [*warnings, _ALWAYS],
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "stop-rule.csv").write_text(replay_csv(document), encoding="utf-8")
        (out / "stop-rule.svg").write_text(replay_svg(document), encoding="utf-8")
        typer.echo(f"wrote {out / 'stop-rule.svg'} and {out / 'stop-rule.csv'}", err=True)
    if json_:
        typer.echo(canonical_json(document))
    else:
        print_replay(Console(), document)


Rows = list[tuple[str, dict[str, Any]]]  # (where it stands: "line 3", "step 40"; column -> number or None)


def _read(path: Path) -> tuple[Rows, str, list[str]]:
    """Return the rows of a curve, the name of its score, and what its record says against reading much into it."""
    from cprbench.runs.store import HISTORY, MANIFEST, load_run

    if path.name == HISTORY and (path.parent / MANIFEST).exists():
        path = path.parent
    if path.is_dir():
        run = load_run(path)
        rows = [
            found for n, row in enumerate(run.lines(HISTORY), 1) if (found := _flat(row, f"{path / HISTORY}, row {n}"))
        ]
        recipe, warnings = run.record.spec.training, []
        if recipe is not None and recipe.schedule == "linear":
            warnings.append(_DECAYED)
        if recipe is not None and run.record.spec.stop is None:
            warnings.append(_UNBILLED)
        return rows, run.record.psi.primary, warnings
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Give a CSV in UTF-8, a history.jsonl or a run.") from None
    if path.suffix == ".jsonl":
        lines = (_flat(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), 1) if line)
        return [found for found in lines if found], "psi", []
    return list(_csv(path, text)), "psi", []


def _flat(row: Any, where: str) -> tuple[str, dict[str, Any]] | None:
    """Return a history's row as columns: its own numbers, its validation scores, its running gamma.

    None for steps that choosing took: a loop asks its rule in phase train alone.
    """
    try:
        row = json.loads(row) if isinstance(row, str) else row
        if row.get("phase") == "select":
            return None
        columns = {**(row.get("gamma") or {}), **(row.get("validation") or {}), **row}
        return f"step {row['step']}", {k: v for k, v in columns.items() if v is None or isinstance(v, int | float)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: not a row of a history ({error!r}). It needs an object with a step, as cprbench writes it."
        ) from None


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
                if len({*header}) < len(header) or not all(name and name.isprintable() for name in header):
                    raise DataError(f"{where}: the header is {header!r}; give every column a name of its own.")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells under {len(header)} names. Separate by commas, quote a cell that "
                    "holds one, and leave a cell empty where nothing was measured."
                )
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}). Save the table anew as CSV.") from None


def _points(path: Path, rows: Rows, psi: str, resource: str) -> list[tuple[str, float | None, float | None]]:
    """Return (where, psi, resource) of the rows that tell of the score; an empty cell is None."""
    if not rows:
        raise DataError(f"{path}: holds no rows. Give a curve with a row per check below its header.")
    known = list(dict.fromkeys(name for _, row in rows for name in row))
    for option, name in (("--psi", psi), ("--resource", resource)):
        if name not in known:
            raise DataError(f"{path}: no column {name!r}. Name one with {option}: {', '.join(known)}.")
    return [
        (where, _number(path, where, psi, row[psi]), _number(path, where, resource, row.get(resource)))
        for where, row in rows
        if psi in row
    ]


def _number(path: Path, where: str, name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}, {where}: {name} is {value!r}, not a finite number. Leave it empty if unmeasured.")
    return number
