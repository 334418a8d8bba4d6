"""A plan on a terminal of 80 columns: one table per model, or the sheet of what fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cprbench.judge.groups import Figure
from cprbench.render.numbers import number

_GIB = 2**30
_PARTS = ("weight", "gradient", "optimizer", "activation", "peak")


def print_plan(console: Console, document: Mapping[str, Any]) -> None:
    """Print a cprbench.plan/1 document."""
    if document["fits_bytes"] is not None:
        _sheet(console, document)
    else:
        for model in document["models"]:
            _table(console, document, model)
    if document["hardware"] is not None:
        _costs(console, document)
    console.print(escape("\n".join(_notes(document))), highlight=False)


def _table(console: Console, document: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    rows = _planned(model)
    unit, name = (1e9, "GB") if max((row["peak_bytes"] for row in rows), default=0) >= 1e10 else (1e6, "MB")
    task = document["task"]
    size = _count(model["parameters"])
    table = _new(
        f"{task['name']} v{task['version']} x {model['model']}\n{size}, {model['precision']}; {name}, modelled"
    )
    table.add_column("arm", overflow="fold")
    for column in ("trained", "weights", "grads", "optim", "activ", "peak", "FLOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        sizes = [_size(row[f"{part}_bytes"] / unit) for part in _PARTS]
        flops = number(Figure(row["flops"], None)) if row["flops"] is not None else "n/k"
        table.add_row(escape(_marked(row)), _count(row["trained_parameters"]), *sizes, flops)
    console.print(table)
    _refused(console, model)


def _sheet(console: Console, document: Mapping[str, Any]) -> None:
    limit, task = document["fits_bytes"], document["task"]
    table = _new(f"{task['name']} v{task['version']}: what fits {limit / _GIB:.4g} GiB; modelled")
    table.add_column("model", overflow="fold")
    table.add_column("arm", overflow="fold")
    for column in ("trained", "peak GiB", "fits"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in document["models"]:
        for place, row in enumerate(_planned(model)):
            table.add_row(
                escape(model["model"]) if place == 0 else "",
                escape(_marked(row)),
                _count(row["trained_parameters"]),
                _size(row["peak_bytes"] / _GIB),
                "yes" if row["fits"] else "no",
            )
    console.print(table)
    for model in document["models"]:
        _refused(console, model)


def _costs(console: Console, document: Mapping[str, Any]) -> None:
    hardware = document["hardware"]
    table = _new(f"on {hardware['name']} at {100 * hardware['utilisation']:g} % of its peak FLOP/s; modelled")
    several = len(document["models"]) > 1
    if several:
        table.add_column("model", overflow="fold")
    table.add_column("arm", overflow="fold")
    for column in ("of memory", "hours", "kWh", "kg CO2"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in document["models"]:
        for row in _planned(model):
            figures = [number(Figure(row[key], "n/k")) for key in ("hours", "kwh", "co2_kg")]
            share = f"{100 * row['peak_bytes'] / hardware['memory_bytes']:.0f} %"
            lead = [escape(model["model"])] if several else []
            table.add_row(*lead, escape(_marked(row)), share, *figures)
    console.print(table)


def _notes(document: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to use these numbers, in sentences."""
    rows = [row for model in document["models"] for row in _planned(model)]
    recipe, hardware, is_sheet = document["training"], document["hardware"], document["fits_bytes"] is not None
    notes = [
        f"All modelled, nothing ran: training.batch_size = {recipe['batch_size']}, every sequence as long as "
        f"training.max_tokens = {recipe['max_tokens']}; weights and gradients in float32. FLOPs: select + train."
    ]
    if document["memory"].startswith("CUDA"):
        notes.append("peak: of torch's CUDA allocator; the CUDA context and fragmentation come on top.")
    else:
        notes.append("peak: RSS of the training child, its interpreter, libraries and the holes of its heap included.")
    if worst := [row for row in rows if row["set"] == "worst case"]:
        notes.append(
            "*: which submodules train is known in the run; this is the worst case, from the input upwards. The best "
            "case, the last layers: " + (_fitting(worst) if is_sheet else _peaks(worst))
        )
    if names := _methods(row for row in rows if row["peak_in"] == "select"):
        size = recipe["select_batch_size"]
        notes.append(f"peak of {names}: while gradient norms are measured, in batches of select.batch_size = {size}.")
    if names := _methods(row for row in rows if row["cache_bytes"]):
        most = _gb(max(row["cache_bytes"] for row in rows))
        notes.append(f"{names}: up to {most} of it keep what frozen layers give (training.cache_prefix).")
    if _methods(row for row in rows if row["method"] == "qlora"):
        notes.append("qlora: linears of layers in nf4 with double quantisation, all else float32.")
    if _methods(row for row in rows if row["method"] == "partial+lora"):
        notes.append("partial+lora: ranks taken as equal; ranks that follow norms keep their mean.")
    frozen = max(row["frozen_parameters"] for row in rows)
    if frozen and not is_sheet:
        state = max(rows, key=lambda row: row["frozen_parameters"])["frozen_state_bytes"].values()
        plain, with_copy = map(_gb, state)
        notes.append(
            f"Optimizer state that {_count(frozen)} frozen parameters do without: {plain} as two float32 moments (8 "
            f"bytes each, as here); {with_copy} with a float32 master copy beside 16-bit weights (12 bytes each, the "
            "convention of the paper's 67 GB)."
        )
    if hardware is not None:
        notes.append(f"{hardware['name']}: {hardware['data_sheet']}; {hardware['watts']} W throughout.")
    for key, name in (("flops", "FLOPs"), ("co2_kg", "kg CO2")):
        reasons = dict.fromkeys(row["why_missing"].get(key) for row in rows)
        notes += [f"{name}: not known, {why}." for why in reasons if why and (key == "flops" or hardware is not None)]
    if document["task"]["why_missing"]:
        notes.append(f"The data were not read: {document['task']['why_missing']}")
    return notes


def _peaks(worst: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['arm']} {_gb(row['best_case']['peak_bytes'])}" for row in worst) + "."


def _fitting(worst: Sequence[Mapping[str, Any]]) -> str:
    found = [row["arm"] for row in worst if row["best_case"]["fits"] and not row["fits"]]
    return f"{', '.join(found)} would fit." if found else "the same answers."


def _methods(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row["method"] for row in rows))


def _planned(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in model["rows"] if "why_not" not in row]


def _refused(console: Console, model: Mapping[str, Any]) -> None:
    for row in model["rows"]:
        if "why_not" in row:
            console.print(escape(f"not planned: {model['model']}, {row['arm']}: {row['why_not']}"), highlight=False)


def _marked(row: Mapping[str, Any]) -> str:
    return f"{row['arm']}*" if row["set"] == "worst case" else str(row["arm"])


def _new(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", pad_edge=False, show_edge=False, box=None)


def _size(value: float) -> str:
    """Return a size in a table's unit; what is too small for it is not shown as nothing."""
    return (
        "<0.01"
        if 0 < value < 0.01
        else f"{value:.0f}"
        if value >= 100
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)
