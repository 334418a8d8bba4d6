"""A blueprint for people: shares of squared gradient norm by layer, submodule and domain, and where they come from.

`html` is one page that asks for nothing else. The command line shows the same numbers.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from cprbench.blueprint.picking import influences
from cprbench.blueprint.schema import Blueprint, Interval, Layer, Making
from cprbench.blueprint.signals import norms_of
from cprbench.errors import MethodError
from cprbench.judge.groups import Figure
from cprbench.render.document import Cell, Items, Prose, Report, Section, Table
from cprbench.render.numbers import number, resource_title
from cprbench.spec import RESOURCES

#: A share's step on the scale, 0 to 6, is how many of these it reaches. Fixed, so that pages compare by colour.
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
NOT_TOLD = Cell("not told")
_CELL = re.compile(r"(attn|ffn)\.(\d+)")


def domains_of(blueprint: Blueprint) -> list[str]:
    """Return the domains that the file has numbers of, the reference first."""
    told = (tag for layer in blueprint.layers for tag in (*layer.domains, *layer.domain_tags))
    return list(dict.fromkeys((str(blueprint.reference), *(d.tag for d in blueprint.domains), *told)))


def shares(blueprint: Blueprint, domain: str) -> dict[str, float] | None:
    """Return submodule -> share of a domain's squared norm; None where only some submodules have the domain."""
    try:
        squares = influences(norms_of(blueprint, domain=domain))
    except MethodError:
        return None
    total = math.fsum(squares.values())
    return {name: square / total if total else 0.0 for name, square in squares.items()}


def step(share: float) -> int:
    """Return a share's step on the colour scale."""
    return bisect_right(EDGES, share)


def percent(share: float) -> str:
    """Return a share in percent, without the sign."""
    return "0" if share == 0 else "<0.1" if share < 0.0005 else f"{100 * share:.1f}"


def grid(blueprint: Blueprint) -> tuple[list[str], list[tuple[str, list[str | None]]], list[str]]:
    """Return (kinds, (layer, its submodule of each kind or None) from the bottom up, submodules in no layer)."""
    found = {match[0]: match for layer in blueprint.layers if (match := _CELL.fullmatch(layer.id))}
    kinds = [kind for kind in ("attn", "ffn") if any(match[1] == kind for match in found.values())]
    indices = sorted({match[2] for match in found.values()}, key=lambda index: (len(index), index))
    rows = [(i, [f"{kind}.{i}" if f"{kind}.{i}" in found else None for kind in kinds]) for i in indices]
    return kinds, rows, [layer.id for layer in blueprint.layers if layer.id not in found]


def facts(blueprint: Blueprint) -> list[tuple[str, str]]:
    """Return what the file is, as (name, value) in plain text."""
    model, how, curves, private = blueprint.model, blueprint.measurement, blueprint.concentration, blueprint.privacy
    found = [("model", f"{blueprint.model_id} at {100 * blueprint.training_checkpoint:g} % of its training")]
    if model is not None:
        size = f"{model.parameters:,} parameters, {model.kind}"
        found.append(("source", f"{model.source}, revision {model.revision or 'not told'}; {size}"))
        found.append(("weights sha256", model.weights_sha256))
    if how is not None:
        found.append(("gradient norm", f"{how.norm}; {how.batches} batches of {how.batch_size}, {how.dtype}"))
        head = "" if how.head is None else f"; new head: {how.head}, {how.warmup_steps} warm-up steps"
        found.append(("loss", f"{how.loss}{head}"))
    for d in blueprint.domains:
        batches = "" if d.batches is None else f" in {d.batches} batches"
        size = f"{d.split} split, {d.examples} examples{batches}, at most {d.max_tokens} tokens"
        found.append((f"domain {d.tag}", f"{d.task} v{d.version}, {size}; data sha256 {d.data_sha256[:12]}"))
    if curves is not None and curves.fit is not None:
        found.append(("alpha", f"{told(curves.alpha)}: {curves.fit.verdict} ({curves.fit.why})"))
    elif curves is not None and curves.alpha is not None:
        found.append(("alpha", f"{told(curves.alpha)}, without a fit to judge it by"))
    verdicts = Counter(layer.fit.verdict for layer in blueprint.layers if layer.fit is not None)
    if any(layer.alpha is not None for layer in blueprint.layers):
        judged = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items())) or "no fit to judge them by"
        found.append(("alpha by submodule", f"{_range(layer.alpha for layer in blueprint.layers)}; {judged}"))
    if curves is not None and curves.gamma_fit is not None:
        fit = f"{told(curves.gamma_fit)} (R^2 {told(curves.gamma_fit_r_squared)})"
        found.append(("gamma", f"{fit}, fitted to the pick curve; {told(curves.gamma)} by 1 - alpha/(1 + alpha)"))
    found.append(("k_star", recommended(blueprint.k_star, blueprint.k_star_why)))
    if any(layer.k_star is not None for layer in blueprint.layers):
        found.append(("k_star by submodule", f"{_range(layer.k_star for layer in blueprint.layers)} of its scalars"))
    for cost in blueprint.cost:
        fit = f"{cost.source} cost of steps, line with R^2 {told(cost.r_squared)}"
        found.append((f"k_star by {cost.resource}", f"{recommended(cost.k_star, cost.why)} ({fit})"))
    if private is not None:
        bound = "" if private.epsilon is None else f"; epsilon {private.epsilon:g} at delta {told(private.delta)}"
        found.append(("privacy", f"aggregates only{bound}" + (f"; {private.note}" if private.note else "")))
    if blueprint.made is not None:
        found.append(("made by", f"{blueprint.made.tool} on {blueprint.made.hardware_class or 'hardware not told'}"))
    return [*found, ("making it cost", cost_of(blueprint.made))]


def _range(values: Iterable[float | None]) -> str:
    every = list(values)
    known = [value for value in every if value is not None]
    lacking = len(every) - len(known)
    return f"{told(min(known))} to {told(max(known))}" + (f" (none for {lacking} of {len(every)})" if lacking else "")


def told(value: float | None) -> str:
    """Return a number with three digits, or that the file does not tell it."""
    return number(Figure(value, "not told"))


def recommended(k: float | None, why: str | None) -> str:
    """Return a recommended share, or why there is none."""
    return f"{100 * k:.3g} % of the parameters" if k is not None else f"none: {why or 'not told why'}"


def cost_of(made: Making | None) -> str:
    """Return what making a file cost, and what of it was not measured."""
    if made is None:
        return "not told"
    values = {resource_title(name): getattr(made, name) for name in RESOURCES}
    known = [] if made.seconds is None else [f"{number(Figure(made.seconds))} s"]
    known += [f"{number(Figure(value))} {unit}" for unit, value in values.items() if value is not None]
    missing = ", ".join(unit for unit, value in values.items() if value is None)
    return (", ".join(known) or "nothing that was measured") + (f"; not measured: {missing}" if missing else "")


def html(blueprint: Blueprint) -> str:
    """Return the page of a blueprint; the same bytes for the same file."""
    from cprbench.render.formats.html import render_html

    return render_html(Report(title_of(blueprint), (section(blueprint, "blueprint", "What the file says"),)))


def title_of(blueprint: Blueprint) -> str:
    """Return what a page about a blueprint is called."""
    return f"Gradient blueprint: {blueprint.model_id}"


def section(blueprint: Blueprint, name: str, title: str) -> Section:
    """Return what a page says of a blueprint: the map, the submodules, where the numbers come from, what it lacks."""
    lead = f"{len(blueprint.layers)} submodules at {100 * blueprint.training_checkpoint:g} % of training. "
    lead += "A share is the part of the gradient's squared norm that falls on a submodule."
    rows = tuple((Cell(what), Cell(value)) for what, value in facts(blueprint))
    lacks = tuple(blueprint.lacks()) or ("Nothing.",)
    parts = (
        Prose((lead,)),
        _heat(blueprint),
        _submodules(blueprint),
        Table("facts", "Where the numbers come from", ("what", "value"), rows, words=(0, 1)),
        Items("What the file lacks", lacks),
    )
    return Section(name, title, parts)


def scale(edges: Sequence[float]) -> str:
    """Return in words where the shades of a table of shares change."""
    return f"The shade changes at {', '.join(f'{100 * edge:g}' for edge in edges)} %."


def _heat(blueprint: Blueprint) -> Table:
    """Return shares of the squared gradient norm: a row per layer, or submodule in no layer; columns by domain."""
    kinds, rows, apart = grid(blueprint)
    tags = domains_of(blueprint)
    found = {tag: shares(blueprint, tag) for tag in tags}
    none = Cell("")

    def shaded(tag: str, name: str | None) -> Cell:
        known = found[tag]
        return NOT_TOLD if known is None or name is None else share_cell(known[name])

    columns = [*kinds, "other"] if apart else kinds
    lines = []
    for index, names in rows:
        own = ([*(shaded(tag, name) for name in names), *([none] if apart else [])] for tag in tags)
        lines.append((Cell(f"layer {index}"), *(cell for cells in own for cell in cells)))
    for name in apart:
        own = ([*(none for _ in kinds), shaded(tag, name)] for tag in tags)
        lines.append((Cell(name), *(cell for cells in own for cell in cells)))
    header = ("submodule", *(f"{tag} {kind}" for tag in tags for kind in columns))
    return Table("heat", "Share of squared gradient norm, in percent", header, tuple(lines), (scale(EDGES),))


def share_cell(share: float) -> Cell:
    """Return a share in percent, shaded by its step."""
    return Cell(percent(share), share, step(share))


def _submodules(blueprint: Blueprint) -> Table:
    names = ("parameters", "gradient norm", "95 % interval", "example norm", "alpha", "tail", "gamma, fitted", "k_star")
    reference = str(blueprint.reference)
    rows = tuple((Cell(layer.id), *_row(layer, reference)) for layer in blueprint.layers)
    return Table("submodules", f"Submodules, in domain {reference}", ("submodule", *names), rows, words=(0, 3, 6, 8))


def _row(layer: Layer, reference: str) -> tuple[Cell, ...]:
    own = layer.domains.get(reference)
    size = NOT_TOLD if layer.parameters is None else Cell(f"{layer.parameters:,}", layer.parameters)
    share = f"{100 * layer.k_star:.3g} %" if layer.k_star is not None else f"none: {layer.k_star_why or 'not told why'}"
    return (
        size,
        Cell(told(layer.gradient_norm), layer.gradient_norm),
        Cell(_interval(None if own is None else own.gradient_norm_ci)),
        Cell(told(layer.example_norm), layer.example_norm),
        Cell(told(layer.alpha), layer.alpha),
        NOT_TOLD if layer.fit is None else Cell(layer.fit.verdict),
        Cell(told(layer.gamma_fit), layer.gamma_fit),
        Cell(share, layer.k_star),
    )


def _interval(interval: Interval | None) -> str:
    return "not told" if interval is None else f"{told(interval.low)} to {told(interval.high)}"
