"""cprbench blueprint pick and export: a file in the words of the tools that will use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprbench.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from cprbench.blueprint.picking import Picked
    from cprbench.blueprint.schema import Blueprint

FORMATS = ("names", "peft", "axolotl", "rank-pattern")
EXPORTS = ("csv", "spectrum-json", "spectrum-yaml", "model-card")
_USUAL_K = "0.15"

File = Annotated[Path, typer.Argument(metavar="FILE", help="A blueprint file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Norms = Mapping[str, float]
Sizes = Mapping[str, int]


def pick(
    file: File,
    k: Annotated[str, typer.Option(help=f"Share of the parameters, or blueprint (default {_USUAL_K}).")] = "",
    by: Annotated[str, typer.Option(help="norm, density, per-parameter or per-cost.")] = "norm",
    granularity: Annotated[str, typer.Option(help="submodule or layer.")] = "submodule",
    embed: Annotated[bool, typer.Option("--embed", help="The input tables may be taken.")] = False,
    domain: Annotated[str, typer.Option(help="Pick for this domain (default: the file's reference).")] = "",
    uncertainty: Annotated[str, typer.Option(help="ignore, or shrink norms by their intervals.")] = "ignore",
    budget: Annotated[str, typer.Option(help="Instead of --k, e.g. memory=8GiB,time=0.5 (of a full step).")] = "",
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "names",
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank (rank-pattern: its mean).")] = 8,
    out: Annotated[Path | None, typer.Option(help="Write the result here instead of printing it.")] = None,
    json_: Json = False,
) -> None:
    """Pick submodules to tune. Only the result goes to stdout, in the words of the tool that will read it."""
    from cprbench.blueprint import files, signals

    if format_ not in FORMATS:
        raise SpecError(f"unknown format {format_!r}. {did_you_mean(format_, FORMATS)}")
    blueprint = files.read(file)
    sizes = _sizes(blueprint, file)
    norms = signals.norms_of(blueprint, domain=domain or None, uncertainty=uncertainty)  # type: ignore[arg-type]
    if budget:
        if k or (by, granularity) != ("norm", "submodule"):
            raise SpecError("--budget takes the most squared norm it can: leave out --k, --by and --granularity.")
        asked, picked = budget, _within(blueprint, norms, sizes, budget, embed)
    else:
        share = _share(blueprint, k or _USUAL_K)
        asked = f"k = {share:.3g}"
        picked = _picked(blueprint, norms, sizes, share, by=by, granularity=granularity, embed=embed)
    result, note = _formatted(blueprint, picked, norms, format_, rank)
    text = result if isinstance(result, str) else json.dumps(result, indent=2, allow_nan=False) + "\n"
    if json_:
        document = {"asked": asked, "k_reached": picked.k_reached, "submodules": picked.submodules, "result": result}
        text = json.dumps({**document, "by": by, "format": format_}, sort_keys=True, allow_nan=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write(out, text, (file,))
    reached = f"{len(picked.submodules)} of {len(sizes)} submodules, {100 * picked.k_reached:.3g} % of the parameters"
    typer.echo(f"{reached} (asked: {asked}; domain {domain or blueprint.reference}, by {by}).{note}", err=True)


def _sizes(blueprint: Blueprint, file: Path) -> dict[str, int]:
    found = {layer.id: layer.parameters for layer in blueprint.layers if layer.parameters is not None}
    if lacking := [layer.id for layer in blueprint.layers if layer.parameters is None]:
        raise SpecError(
            f"{file} does not state the parameters of {lacking[0]!r}, so no share of them can be filled. Let the model "
            f"tell them: cprbench run TASK --model MODEL --method partial --set partial.blueprint={file}"
        )
    return found


def _share(blueprint: Blueprint, k: str) -> float:
    if k != "blueprint":
        try:
            return float(k)
        except ValueError:
            raise SpecError(f"--k {k!r}: a share of the parameters such as {_USUAL_K}, or blueprint.") from None
    if blueprint.k_star is None:
        raise SpecError(f"this blueprint recommends no k ({blueprint.k_star_why or 'it says no k_star'}). Pass --k.")
    return blueprint.k_star


def _picked(blueprint: Blueprint, norms: Norms, sizes: Sizes, k: float, **how: Any) -> Picked:
    from cprbench.blueprint import picking

    return picking.pick(norms, sizes, sum(sizes.values()), k, cost=blueprint.step_cost, **how)


def _within(blueprint: Blueprint, norms: Norms, sizes: Sizes, budget: str, embed: bool) -> Picked:
    """Return what a budget allows, with what the file knows: its step cost, and its line of memory by share."""
    from cprbench.blueprint.budget import Budget, pick_within

    limits = Budget.parse(budget)
    memory = next((cost for cost in blueprint.cost if cost.resource == "memory_bytes"), None)
    if limits.memory_bytes is not None and memory is None:
        raise SpecError("this blueprint has no cost model of memory_bytes. Budget time only, or pass --k.")
    fixed = None if memory is None else round(memory.fixed_cost * sum(sizes.values()))
    return pick_within(
        norms,
        sizes,
        limits,
        step_cost=blueprint.step_cost,
        fixed_memory_bytes=fixed,
        bytes_per_parameter=None if memory is None else memory.cost_per_parameter,
        embed=embed,
    )


def _formatted(
    blueprint: Blueprint, picked: Picked, norms: Norms, format_: str, rank: int
) -> tuple[str | dict[str, Any], str]:
    """Return a pick in a format, and a sentence on what the format cannot say."""
    from cprbench.blueprint import exchange

    if format_ == "names":
        return exchange.names(picked), ""
    if format_ == "axolotl":
        of = exchange.parameters_of(blueprint)
        return exchange.to_axolotl([name for cell in picked.submodules for name in of[cell]]), ""
    linears = exchange.linears_of(blueprint)
    kind = blueprint.model.kind if blueprint.model else None
    config = exchange.to_peft(picked.submodules, linears, r=rank, alpha=2 * rank, kind=kind)
    if format_ == "rank-pattern":
        config |= exchange.to_rank_pattern(norms, picked.submodules, linears, rank)
    without = [cell for cell in picked.submodules if not linears[cell]]
    return config, f" No linear module to adapt in {', '.join(without)}." if without else ""


def export(
    file: File,
    format_: Annotated[str, typer.Option("--format", help=f"{', '.join(EXPORTS)}.")],
    k: Annotated[str, typer.Option(help=f"spectrum-yaml: share to unfreeze (default {_USUAL_K}).")] = "",
    json_: Annotated[bool, typer.Option("--json", help="Print the text inside a JSON document.")] = False,
) -> None:
    """Print a file for a spreadsheet, for Spectrum's tools or for a model card."""
    from cprbench.blueprint import exchange, files, signals

    if format_ not in EXPORTS:
        raise SpecError(f"unknown format {format_!r}. {did_you_mean(format_, EXPORTS)}")
    if k and format_ != "spectrum-yaml":
        raise SpecError(f"--k does nothing for {format_}: only spectrum-yaml names a pick.")
    blueprint = files.read(file)
    match format_:
        case "csv":
            text = exchange.to_csv(blueprint)
        case "spectrum-json":
            text = exchange.to_spectrum_json(blueprint)
        case "model-card":
            text = exchange.model_card(blueprint)
        case _:
            norms, sizes = signals.norms_of(blueprint), _sizes(blueprint, file)
            picked = _picked(blueprint, norms, sizes, _share(blueprint, k or _USUAL_K))
            text = str(_formatted(blueprint, picked, norms, "axolotl", 1)[0])
    if json_:
        echo_json({"format": format_, "text": text})
    else:
        typer.echo(text, nl=False)


def echo_json(data: Any) -> None:
    from cprbench.schema import canonical_json

    typer.echo(canonical_json(data))


def write(path: Path, text: str, sources: Iterable[Path]) -> None:
    """Write `text` to `path`; raises SpecError where no file can be, and where it would replace a source."""
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise SpecError(f"{path} is what is being read. Name another file.")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror}). Choose a folder that exists.") from None
