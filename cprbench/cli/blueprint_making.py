"""cprbench blueprint create and audit: the verbs that measure. A metered child does the work."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprbench.cli.watch import Watch
from cprbench.errors import SpecError

if TYPE_CHECKING:
    from cprbench.surveys.blueprints import Recipe

#: Rank correlations from which two rankings are alike, and alike in part.
ALIKE, PARTLY = 0.9, 0.5

Data = Annotated[Path | None, typer.Option(help="Folder of data files (else CPRBENCH_DATA, ../shared/data).")]
Offline = Annotated[bool, typer.Option("--offline", help="Open no connection: caches only.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Alias, folder, .gguf file or hub id@revision.")]


def create(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the blueprint goes (JSON).")],
    domain: Annotated[list[str], typer.Option(help="TAG=TASK, e.g. general=movie-snippets; repeat it.")] = [],  # noqa: B006
    checkpoint: Annotated[
        list[str],
        typer.Option(
            help="Fraction of training that MODEL has seen (default 1), or FRACTION=SOURCE for one more file."
        ),
    ] = [],  # noqa: B006
    batches: Annotated[int, typer.Option(help="Batches per domain; medians want 16.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.")] = 32,
    warmup_steps: Annotated[int, typer.Option(help="Head-only steps before a new head is measured.")] = 50,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    noise_multiplier: Annotated[float | None, typer.Option(help="Gaussian noise, for sensitive data.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Under noise: clip every example's gradient here.")] = None,
    delta: Annotated[float | None, typer.Option(help="Under noise: the delta of (epsilon, delta).")] = None,
    data: Data = None,
    offline: Offline = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    country: Annotated[str, typer.Option(help="ISO-3 code for the carbon intensity, e.g. FRA.")] = "",
    carbon_intensity: Annotated[float | None, typer.Option(help="Carbon intensity in g CO2 per kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    allow_shared: Annotated[bool, typer.Option("--allow-shared", help="Run on a GPU in use; flagged.")] = False,
) -> None:
    """Measure a model's gradients on a task per domain and write the blueprint file. What it costs is in the file."""
    from cprbench.blueprint import files
    from cprbench.meters.carbon import factors
    from cprbench.render.heatmap import cost_of, recommended
    from cprbench.runs.metering import MeterOptions
    from cprbench.surveys import blueprints

    noise = {"noise_multiplier": noise_multiplier, "clip_norm": clip_norm, "delta": delta}
    given = {name: value for name, value in noise.items() if value is not None}
    recipe = blueprints.Recipe(
        batches=batches, batch_size=batch_size, warmup_steps=warmup_steps, precision=precision, **given
    )
    if given and recipe.noise_multiplier == 0:
        raise SpecError("--clip-norm and --delta describe noise. Pass --noise-multiplier too.")
    _check_accountant(recipe)
    domains = _domains(domain)
    planned = _planned(model, checkpoint, out)
    for path in (plan.path for plan in planned):
        _check_target(path, force)
    metering = MeterOptions(carbon=factors(country or None, carbon_intensity, pue), allow_shared=allow_shared)
    around = blueprints.Surroundings(data=data, offline=offline, metering=metering)
    for plan in planned:
        work = ", ".join(f"{tag}={task}" for tag, task in domains.items())
        stage = f"{plan.source} at {100 * plan.checkpoint:g} % of training"
        with _watch(recipe, f"{stage} on {work}, for {plan.path}") as watch:
            made = blueprints.create(
                plan.source,
                domains,
                checkpoint=plan.checkpoint,
                recipe=recipe,
                surroundings=around,
                observe=watch.observe,
            )
            files.write(made, plan.path)
        typer.echo(f"{plan.path}")
        typer.echo(f"  k_star: {recommended(made.k_star, made.k_star_why)}")
        unmeasured = " (cprbench doctor says why)" if "not measured" in cost_of(made.made) else ""
        typer.echo(f"  making it cost {cost_of(made.made)}{unmeasured}")
        for sentence in made.lacks():
            typer.echo(f"  lacks: {sentence}")


@dataclass(frozen=True)
class _Plan:
    """One file to make."""

    source: str
    checkpoint: float
    path: Path


def _planned(model: str, checkpoints: list[str], out: Path) -> list[_Plan]:
    """Return the files to make, by checkpoint. Raises SpecError for checkpoints that cannot be or stand twice."""
    found: dict[float, str] = {}
    own = 0
    for text in checkpoints:
        fraction, equals, source = text.partition("=")
        try:
            share = float(fraction)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1 or (equals and not source):
            raise SpecError(f"--checkpoint {text!r}: a fraction of training in (0, 1], or FRACTION=SOURCE.")
        if share in found:
            raise SpecError(f"--checkpoint {share:g} is given twice: one file per checkpoint.")
        found[share], own = source or model, own + (not equals)
    if own > 1:
        raise SpecError(f"{model} is at one checkpoint. Name the source of the others: --checkpoint 0.5=SOURCE.")
    if not own:
        if 1.0 in found:
            raise SpecError(f"--checkpoint {found[1.0]!r} stands at 1, where {model} would. Say where {model} stands.")
        found[1.0] = model
    if len(found) == 1:
        return [_Plan(source, share, out) for share, source in found.items()]
    return [
        _Plan(source, share, out.with_name(f"{out.stem}-{100 * share:g}{out.suffix}"))
        for share, source in sorted(found.items())
    ]


def _domains(given: list[str]) -> dict[str, str]:
    """Return tag -> task, the tasks known to exist. Raises SpecError for anything else: before minutes of work."""
    from pydantic import TypeAdapter, ValidationError

    from cprbench.blueprint.schema import Tag
    from cprbench.tasks import load_task

    found: dict[str, str] = {}
    for text in given or [""]:
        tag, _, task = text.partition("=")
        if not task:
            raise SpecError(f"--domain {text!r}: write TAG=TASK, for example general=movie-snippets.")
        if tag in found:
            raise SpecError(f"--domain {tag} is given twice.")
        try:
            TypeAdapter(Tag).validate_python(tag)
        except ValidationError:
            raise SpecError(f"--domain {text!r}: a tag is lower-case letters, digits, '.', '_' and '-'.") from None
        load_task(task)
        found[tag] = task
    return found


def _check_target(path: Path, force: bool) -> None:
    """Raise SpecError where the file exists or could not be written: after minutes of measuring it is too late."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder. Name a file in it.")
    if path.exists() and not force:
        raise SpecError(f"{path} exists. Name another file, or overwrite it with --force.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror}). Choose a folder that exists.") from None


def _check_accountant(recipe: Recipe) -> None:
    import importlib.util

    if recipe.noise_multiplier and importlib.util.find_spec("dp_accounting") is None:
        raise SpecError("noise needs an accountant: pip install 'cprbench[privacy]'.")


def audit(
    model: Model,
    task: Annotated[str, typer.Option(help="Task by name or file.")],
    batches: Annotated[int, typer.Option(help="Batches to measure.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.")] = 16,
    k: Annotated[float, typer.Option(help="Share of parameters whose picks are compared.")] = 0.15,
    data: Data = None,
    offline: Offline = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure whether gradient norms rank submodules as Fisher-preconditioned influence does, and what both cost."""
    from cprbench.blueprint import drift
    from cprbench.errors import MethodError
    from cprbench.surveys import blueprints

    recipe = blueprints.Recipe(batches=batches, batch_size=batch_size)
    around = blueprints.Surroundings(data=data, offline=offline)
    with _watch(recipe, f"gradient norms and Fisher-preconditioned influence of {model} on {task}") as watch:
        found = blueprints.audit(model, task, recipe=recipe, surroundings=around, observe=watch.observe)
    norms, influence, sizes = found["gradient_norm"], found["influence"], found["sizes"]
    pairs = [norms[name] for name in sizes], [influence[name] for name in sizes]
    told: dict[str, Any] = {"spearman": drift.spearman(*pairs), "kendall": drift.kendall(*pairs), "k": k}
    try:
        told |= {"top_overlap": drift.top_overlap(norms, influence, sizes, k), "top_overlap_why": None}
    except MethodError as error:
        told |= {"top_overlap": None, "top_overlap_why": str(error)}
    told["fisher_to_gradient_seconds"] = found["fisher_seconds"] / found["gradient_seconds"]
    told["verdict"] = verdict(told["spearman"], model, task)
    if json_:
        from cprbench.schema import canonical_json

        typer.echo(canonical_json({"schema": "cprbench.audit/1", "model": model, **found, **told}))
    else:
        _print_audit(found, told)


def verdict(correlation: float | None, model: str, task: str) -> str:
    """Return what one audit supports, in a sentence that says no more than one model and one task can."""
    if correlation is None:
        return f"Not comparable: on {model} and {task} all values of one ranking are equal."
    said = f"Spearman {correlation:.3f}"
    if correlation >= ALIKE:
        found = f"Supported: norms rank submodules like this influence ({said}, at least {ALIKE:g})"
    elif correlation >= PARTLY:
        found = f"Partly supported: norms rank submodules only partly like this influence ({said}, below {ALIKE:g})"
    else:
        found = f"Not supported: norms do not rank submodules like this influence ({said}, below {PARTLY:g})"
    return f"{found}, on {model} and {task}; nothing follows for others."


def _print_audit(found: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cprbench.blueprint.picking import EMBED, layers_reached
    from cprbench.blueprint.schema import Making
    from cprbench.judge.groups import Figure
    from cprbench.render.heatmap import cost_of
    from cprbench.render.heatmap import told as number
    from cprbench.render.numbers import percent

    norms, influence = found["gradient_norm"], found["influence"]
    place = {
        kind: {name: i + 1 for i, name in enumerate(sorted(values, key=lambda name: -values[name]))}
        for kind, values in (("norm", norms), ("influence", influence))
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("submodule", overflow="fold")
    for name in ("parameters", "gradient norm", "rank", "influence", "rank"):
        table.add_column(name, justify="right", no_wrap=True)
    reached = layers_reached(found["sizes"])  # a child's answer comes sorted by name: back from the bottom up
    for name in sorted(reached, key=lambda name: (name != EMBED, -reached[name], name)):
        size = found["sizes"][name]
        own = (number(norms[name]), str(place["norm"][name]), number(influence[name]), str(place["influence"][name]))
        table.add_row(name, f"{size:,}", *own)
    console = Console(highlight=False, markup=False)
    console.print(table)
    overlap = percent(Figure(told["top_overlap"], told["top_overlap_why"]))
    console.print(
        f"Spearman {number(told['spearman'])}, Kendall {number(told['kendall'])} over {len(norms)} submodules"
    )
    console.print(f"overlap of what k = {told['k']:g} picks: {overlap}")
    seconds = f"norms {number(found['gradient_seconds'])} s, influence {number(found['fisher_seconds'])} s"
    console.print(f"{seconds} ({told['fisher_to_gradient_seconds']:.2f} x) for {found['examples']} examples")
    console.print(f"the audit cost {cost_of(Making.model_validate(found['made']))}")
    console.print("influence: with the diagonal of the empirical Fisher information, damped; not the full matrix")
    console.print(told["verdict"])


def _watch(recipe: Recipe, what: str) -> Watch:
    size = f"{recipe.batches} batches of {recipe.batch_size}"
    return Watch(
        f"{what}: up to {size} per domain",
        "batches",
        after="; next: another domain, or curves and the cost of steps",
        lost="this file was not written",
    )
