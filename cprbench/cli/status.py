"""cprbench status: what a folder of runs holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def status(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say which runs are stored, how they ended and what they cost so far."""
    from cprbench.runs.store import load_runs
    from cprbench.schema import canonical_json

    found = load_runs(runs)
    records = [run.record for run in found.runs]
    if json_:
        rows = [
            {
                "run_id": r.run_id,
                "status": r.status,
                "role": r.role,
                "task": r.spec.task.name,
                "model": r.spec.model.label,
                "arm": r.arm,
                "block": r.block,
                "final": (r.psi.final or {}).get(r.psi.primary),
                "billed_seconds": r.seconds.get("billed"),
                "error": r.error,
            }
            for r in records
        ]
        typer.echo(canonical_json({"runs": rows, "damaged": found.damaged}))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "task", "arm", "block", "status", "final", "billed s"):
        table.add_column(name, no_wrap=name != "arm")
    for r in records:
        final = (r.psi.final or {}).get(r.psi.primary)
        cells = (
            r.run_id[:8],
            r.spec.task.name,
            r.arm,
            str(r.block),
            r.status if r.role == "run" else f"{r.status} ({r.role})",
        )
        billed = r.seconds.get("billed")
        table.add_row(
            *(escape(cell) for cell in cells),
            "-" if final is None else f"{final:.3f}",
            "-" if billed is None else f"{billed:.1f}",
        )
    Console().print(table)
    counts = Counter(r.status for r in records)
    summary = ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "no runs"
    repeated = {r.previous for r in records}  # a retry's bill holds that of the run it repeats
    bills = [r.seconds.get("billed") for r in records if r.run_id not in repeated]
    known = sum(value for value in bills if value is not None)
    typer.echo(f"{summary}; {known:.1f} s billed in all{', and some not measured' if None in bills else ''}")
    for why in found.damaged.values():
        typer.echo(f"damaged: {why}")
