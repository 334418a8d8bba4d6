"""cprbench plan: what runs would take, from a model's config alone. Nothing is loaded and nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprbench.errors import SpecError

if TYPE_CHECKING:
    from cprbench.spec import ArmSpec

_METHODS = "head,full,lora,partial"
_SHEET = "full,lora,qlora,partial,partial+lora"
_SHEET_K = [0.05, 0.1, 0.15, 0.2, 0.3, 0.5]


def plan(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task by name or file.")],
    model: Annotated[str, typer.Option(help="Alias, folder, config.json or hub id; several with commas.")] = "",
    method: Annotated[str, typer.Option(help=f"Methods, separated by commas (default {_METHODS}).")] = "",
    set_: Annotated[list[str], typer.Option("--set", help="ROOM.KEY=VALUE, e.g. partial.k=0.05,0.1")] = [],  # noqa: B006
    hardware: Annotated[
        str, typer.Option(help="a100-40, a100-80, h100-80, l4-24, rtx4090-24 or t4-16 (default: this CPU).")
    ] = "",
    utilisation: Annotated[float, typer.Option(help="Share of the board's peak FLOP/s that a run reaches.")] = 0.4,
    fits: Annotated[str, typer.Option(help="A sheet of what fits into so much GPU memory, e.g. 24GiB.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of data files (else CPRBENCH_DATA, ../shared/data).")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection: caches only.")] = False,
    country: Annotated[str, typer.Option(help="ISO-3 code for the carbon intensity, e.g. FRA.")] = "",
    carbon_intensity: Annotated[float | None, typer.Option(help="Carbon intensity in g CO2 per kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what runs would take: parameters, memory, FLOPs and, on a named board, hours, kWh and CO2.

    Every number is modelled, from the model's config and the task's recipe; neither weights nor torch are needed.
    """
    from cprbench.adapt.configs import config_of
    from cprbench.meters.carbon import factors
    from cprbench.plans import forecast
    from cprbench.plans.boards import board
    from cprbench.render.plan import print_plan
    from cprbench.runs.arms import arms_of
    from cprbench.runs.set_words import read_settings
    from cprbench.schema import canonical_json
    from cprbench.tasks import load_task, training_for

    if not 0 < utilisation <= 1:
        raise SpecError(f"--utilisation is {utilisation}: a share of the board's peak FLOP/s, above 0 and at most 1.")
    models = [name for name in model.split(",") if name]
    if not models:
        raise SpecError("no model. Pass --model, for example --model minilm or --model path/config.json.")
    limit = _bytes(fits) if fits else None
    settings = read_settings(set_)
    spec = load_task(task)
    recipe = training_for(spec, {key: values[0] for key, values in settings.get("training", {}).items()}, "--set")
    arms = arms_of(_arms(method or (_SHEET if fits else _METHODS), settings, sheet=bool(fits)))
    machine = forecast.Machine(
        board_name=hardware or None,
        board=board(hardware) if hardware else None,
        utilisation=utilisation,
        carbon=factors(country or None, carbon_intensity, pue),
        on_gpu=bool(hardware or fits),
    )
    found = forecast.questions_of(spec, data=data, offline=offline)
    configs = [config_of(name, offline=offline) for name in models]
    document = forecast.document(configs, arms, spec, recipe, found, machine, limit)
    if json_:
        typer.echo(canonical_json(document))
        return
    from rich.console import Console

    print_plan(Console(), document)


def _arms(method: str, settings: Mapping[str, dict[str, list[Any]]], *, sheet: bool) -> list[ArmSpec]:
    """Return the arms that the words describe; a sheet has a line for every usual k where none is given."""
    from cprbench.adapt.methods import named
    from cprbench.spec import ArmSpec

    methods = [name for name in method.split(",") if name]
    if not methods:
        raise SpecError(f"--method {method!r} names no method. Write one, or several with commas: {_METHODS}.")
    if "selection" in settings:
        given = f"--set selection.{next(iter(settings['selection']))}"
        raise SpecError(f"{given}: a plan knows no selections, its arms train on all examples. Leave it out.")
    unused = sorted(set(settings) - {named(name)[0] for name in methods} - {"training"})
    if unused:
        raise SpecError(f"--set {unused[0]}.…: method {unused[0]!r} is not in --method {method}.")
    arms = []
    for name in methods:
        own: dict[str, Any] = dict(settings.get(named(name)[0], {}))
        if sheet and name in ("partial", "partial+lora") and "k" not in own:
            own["k"] = _SHEET_K
        arms.append(ArmSpec(method=name, settings=own))
    return arms


def _bytes(text: str) -> int:
    """Return a size such as 24GiB, 24GB or 25769803776 in bytes. Raises SpecError for what is none."""
    from cprbench.blueprint.budget import size_in_bytes

    size = size_in_bytes(f"{text}B" if text[-1:].isdigit() else text)
    if not size:
        raise SpecError(f"--fits {text!r:.40} is no size. Write 24GiB, 24GB or a number of bytes.")
    return size
