"""cprbench data: its verbs, and those that read a scores file. Reading works where torch is not installed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprbench.cli import data_score
from cprbench.cli.blueprint_use import Json, echo_json, write
from cprbench.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from cprbench.adapt.selection.scores import Scores

app = typer.Typer(
    help="Data selection: score examples, select some, and see which examples drive which submodules.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("score")(data_score.score)

#: What `select` ranks examples by.
BY = ("influence", "loss")
_NAMED = 5  # as many lost classes as a summary names

File = Annotated[Path, typer.Argument(metavar="SCORES.parquet", help="A file of cprbench data score.")]


@app.command()
def select(
    file: File,
    q: Annotated[float | None, typer.Option(help="Share of the examples to keep, the best first.")] = None,
    band: Annotated[str, typer.Option(help="Instead of --q: percentiles of the score to keep, e.g. 20..80.")] = "",
    by: Annotated[str, typer.Option(help="influence (the gradient's norm) or loss.")] = "influence",
    submodules: Annotated[str, typer.Option(help="Norm over these only, e.g. attn.0,ffn.1 (by influence).")] = "",
    class_guard: Annotated[bool, typer.Option("--class-guard", help="Every label keeps its own share.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the selection here.")] = None,
    json_: Json = False,
) -> None:
    """Select examples by their scores: their ids, the recipe that chose them, and a hash of both ends."""
    from cprbench.adapt.selection import scores

    if (q is None) == (not band):
        raise SpecError("say how many to keep: --q 0.3, or --band 20..80, and not both.")
    if by not in BY:
        raise SpecError(f"unknown score {by!r}. {did_you_mean(by, BY)}")
    cells = list(dict.fromkeys(name for name in submodules.split(",") if name))
    if cells and by == "loss":
        raise SpecError("--submodules is a part of the gradient, and a loss has none. Leave out --by loss.")
    found = scores.read(file)
    document, summary = _selection(found, q=q, band=band, by=by, cells=cells, class_guard=class_guard)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if out is not None:
        write(out, text, (file,))
    if json_:
        echo_json(document)
    else:
        typer.echo(text if out is None else f"{out}: {summary}", nl=out is not None)


def _selection(
    found: Scores, *, q: float | None, band: str, by: str, cells: list[str], class_guard: bool
) -> tuple[dict[str, Any], str]:
    """Return the document "cprbench.selection/1" and a sentence on it."""
    import hashlib

    from cprbench.adapt.selection import ranking, scores
    from cprbench.render.text import plain

    if unknown := [name for name in cells if name not in found.cells]:
        raise SpecError(f"--submodules: no submodule {unknown[0]!r}. {did_you_mean(unknown[0], found.cells)}")
    values = found.losses if by == "loss" else found.influence
    if cells:
        values = scores.norm_over(found.norms[:, [found.cells.index(name) for name in cells]])
    kept = ranking.keep(
        values.tolist(), found.ids, found.labels, q=1.0 if q is None else q, band=band, class_guard=class_guard
    )
    ids, here = [found.ids[i] for i in kept], Counter(found.labels[i] for i in kept)
    lost = sorted(set(found.labels) - set(here))
    info = found.info
    document = {
        "schema": "cprbench.selection/1",
        "recipe": {"by": by, "q": q, "band": band or None, "class_guard": class_guard, "submodules": cells or None},
        "scores_sha256": found.sha256,
        "task": info.task.model_dump(),
        "model": {"label": info.model.label, "weights_sha256": info.model.weights_sha256},
        "examples": len(found.ids),
        "selected": len(ids),
        "classes": {label: {"kept": here[label], "of": n} for label, n in sorted(Counter(found.labels).items())},
        "classes_dropped": lost,
        "selection_sha256": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),  # as in a run's record
        "ids": ids,
    }
    total, part = float(found.influence.sum()), float(found.influence[kept].sum())
    share = f"{100 * part / total:.1f} % of the sum of gradient norms" if total else "all gradient norms are 0"
    names = ", ".join(map(plain, lost[:_NAMED])) + (f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else "")
    classes = f" No example is left of {names}." if lost else ""
    return document, f"{len(ids)} of {len(found.ids)} examples, {share}.{classes}"


@app.command()
def cross(
    file: File,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of examples, in order of their gradient norm.")] = 10,
    k: Annotated[str, typer.Option(help="Shares of the parameters in the grid.")] = "0.05,0.1,0.15,0.3,1",
    q: Annotated[str, typer.Option(help="Shares of the examples in the grid.")] = "0.1,0.3,0.5,1",
    out: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Write T and its blocks for numpy.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Write the heat map as a page.")] = None,
    json_: Json = False,
) -> None:
    """Show which examples drive which submodules, and what each pair of shares should keep (eq. 32 to 35)."""
    from cprbench.adapt.selection import ranking, scores
    from cprbench.judge import cross_influence
    from cprbench.render import cross_influence as render
    from cprbench.render.text import plain

    ks, qs = _shares("--k", k), _shares("--q", q)
    for path, suffix in ((out, ".npz"), (html, ".html")):
        if path is not None and path.suffix != suffix:
            raise SpecError(f"{path}: this file ends in {suffix}.")
    found = scores.read(file)
    order = ranking.best_first(found.influence.tolist(), found.ids)
    kept = {share: order[: ranking.how_many(share, len(order))] for share in qs}
    table = found.norms.T
    result = cross_influence.analyse(table, found.ids, found.sizes, order, block_count=blocks, ks=ks, kept=kept)
    facts = _facts(found, file)
    if out is not None:
        _write_npz(out, found, result, file)
    if html is not None:
        title = f"Cross-influence: {plain(found.info.model.label)} on {plain(found.info.task.name)}"
        write(html, render.html(result, facts, title), (file,))
    if json_:
        echo_json(_document(found, result))
    elif out is None and html is None:
        from rich.console import Console

        render.show(Console(highlight=False, markup=False), result, facts)
    else:
        for path in filter(None, (out, html)):
            typer.echo(f"{path}")


def _shares(option: str, text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise SpecError(f"{option} {text!r}: write shares with commas between them, for example 0.1,0.3,1.") from None


def _facts(found: Scores, file: Path) -> list[tuple[str, str]]:
    from cprbench.render.heatmap import cost_of
    from cprbench.render.text import plain

    info = found.info
    head = f"; new head: {info.head}" if info.head else ""
    facts = [
        (
            "task",
            f"{info.task.name} v{info.task.version}, {info.split} split, data sha256 {info.task.data_sha256[:12]}",
        ),
        (
            "model",
            f"{info.model.label}, {info.model.parameters:,} parameters, weights {info.model.weights_sha256[:12]}",
        ),
        ("examples", f"{info.examples}, at most {info.max_tokens} tokens"),
        ("gradients", f"block {info.block}, {info.warmup_steps} warm-up steps, {info.precision}{head}"),
        ("scores", f"{file.name}, sha256 {found.sha256[:12]}"),
        ("making them cost", cost_of(info.made)),
    ]
    return [(name, plain(value)) for name, value in facts]


def _document(found: Scores, result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from cprbench.blueprint.concentration import fit_tail

    parts = {name: asdict(getattr(result, name)) for name in ("spectrum", "exponents")}
    tail = fit_tail(found.influence, seed=0)[1]  # eq. 28
    lists = {name: [asdict(part) for part in getattr(result, name)] for name in ("pairs", "grid")}
    return {
        "schema": "cprbench.cross/1",
        "scores_sha256": found.sha256,
        "info": found.info.model_dump(mode="json", by_alias=True),
        "cells": found.cells,
        "shares": None if result.shares is None else result.shares.tolist(),
        "tail_of_j": tail.model_dump(mode="json"),
        **parts,
        **lists,
    }


def _write_npz(path: Path, found: Scores, result: Any, source: Path) -> None:
    """Write arrays that numpy reads without pickles. It dates its members 1980: the same T gives the same bytes."""
    import io

    import numpy as np

    arrays = {
        "T": np.ascontiguousarray(found.norms.T),
        "T_blocks": result.block_means,
        "block_of_example": result.block_of,
        "cells": np.array(found.cells),
        "ids": np.array(found.ids),
        "sizes": np.array(list(found.sizes.values()), dtype=np.int64),
        "singular_values": np.array(result.spectrum.singular_values),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write(path, "", (source,))  # says what is wrong with the path
    path.write_bytes(stream.getvalue())
