"""A blueprint for people: shares of squared gradient norm by layer, submodule and domain, and where they come from.

`html` is one page that asks for nothing else: no script, no request. The command line shows the same numbers.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from cprbench.blueprint.picking import influences
from cprbench.blueprint.schema import Blueprint, Interval, Layer, Making
from cprbench.blueprint.signals import norms_of
from cprbench.errors import MethodError
from cprbench.judge.groups import Figure
from cprbench.render.numbers import number, resource_title
from cprbench.spec import RESOURCES

#: A share's step on the scale, 0 to 6, is how many of these it reaches. Fixed, so that pages compare by colour.
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
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
    title = f"Gradient blueprint: {escape(blueprint.model_id)}"
    lead = f"{len(blueprint.layers)} submodules at {100 * blueprint.training_checkpoint:g} % of training. "
    lead += "A share is the part of the gradient's squared norm that falls on a submodule."
    lacks = "".join(f"<li>{escape(sentence)}</li>" for sentence in blueprint.lacks())
    rows = "".join(f'<tr><th scope="row">{escape(n)}</th><td>{escape(v)}</td></tr>' for n, v in facts(blueprint))
    reference = escape(str(blueprint.reference))
    body = (
        f"<h2>Share of squared gradient norm, in percent</h2>\n{legend()}\n{_heat(blueprint)}\n"
        f"<h2>Submodules, in domain {reference}</h2>\n{_details(blueprint)}\n"
        f'<h2>Where the numbers come from</h2>\n<table class="facts">{rows}</table>\n'
        f"<h2>What the file lacks</h2>\n{f'<ul>{lacks}</ul>' if lacks else '<p>Nothing.</p>'}\n"
    )
    return page(title, lead, body)


def page(title: str, lead: str, body: str) -> str:
    """Return a page that asks for nothing and runs nothing; all three are HTML, escaped already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{lead}</p>\n"
        f"{body}</main>\n</body>\n</html>\n"
    )


def legend() -> str:
    """Return the colour scale as a list."""
    edges = [f"{100 * edge:g}" for edge in EDGES]
    names = [f"below {edges[0]}", *(f"{a} to {b}" for a, b in pairwise(edges)), f"{edges[-1]} up"]
    items = "".join(f'<li class="s{i}">{name}</li>' for i, name in enumerate(names))
    return f'<ul class="legend" aria-label="Colour scale, percent">{items}</ul>'


def _heat(blueprint: Blueprint) -> str:
    kinds, rows, apart = grid(blueprint)
    tags = domains_of(blueprint)
    found = {tag: shares(blueprint, tag) for tag in tags}
    wide = max(1, len(kinds))

    def cell(tag: str, name: str | None, span: int) -> str:
        known, columns = found[tag], f' colspan="{span}"' if span > 1 else ""
        if known is None or name is None:
            return f'<td{columns} class="none">not told</td>'
        return f'<td{columns} class="s{step(known[name])}">{percent(known[name])}</td>'

    groups = "".join(f'<th scope="colgroup" colspan="{wide}">{escape(tag)}</th>' for tag in tags)
    columns = "".join(f'<th scope="col">{kind}</th>' for kind in kinds) * len(tags)
    head = f'<tr><th class="first" scope="col" rowspan="{2 if kinds else 1}">layer</th>{groups}</tr>'
    lines = [head + (f"<tr>{columns}</tr>" if kinds else "")]
    lines = [f"<thead>{lines[0]}</thead>", "<tbody>"]
    for index, names in rows:
        cells = "".join(cell(tag, name, 1) for tag in tags for name in names)
        lines.append(f'<tr><th scope="row">{index}</th>{cells}</tr>')
    for name in apart:
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(tag, name, wide) for tag in tags)}</tr>')
    return scrolled("heat", "Share of squared gradient norm by layer, submodule and domain", [*lines, "</tbody>"])


def _details(blueprint: Blueprint) -> str:
    names = ("parameters", "gradient norm", "95 % interval", "example norm", "alpha", "tail", "gamma, fitted", "k_star")
    head = '<th class="first" scope="col">submodule</th>' + "".join(f'<th scope="col">{name}</th>' for name in names)
    lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for layer in blueprint.layers:
        row = "".join(f"<td>{escape(value)}</td>" for value in _row(layer, str(blueprint.reference)))
        lines.append(f'<tr><th scope="row">{escape(layer.id)}</th>{row}</tr>')
    return scrolled("details", "Submodules: size, norms, intervals, tail and k_star", [*lines, "</tbody>"])


def _row(layer: Layer, reference: str) -> Sequence[str]:
    own = layer.domains.get(reference)
    return (
        "not told" if layer.parameters is None else f"{layer.parameters:,}",
        told(layer.gradient_norm),
        _interval(None if own is None else own.gradient_norm_ci),
        told(layer.example_norm),
        told(layer.alpha),
        "not told" if layer.fit is None else layer.fit.verdict,
        told(layer.gamma_fit),
        f"{100 * layer.k_star:.3g} %" if layer.k_star is not None else f"none: {layer.k_star_why or 'not told why'}",
    )


def _interval(interval: Interval | None) -> str:
    return "not told" if interval is None else f"{told(interval.low)} to {told(interval.high)}"


def scrolled(kind: str, label: str, lines: Sequence[str]) -> str:
    """Return a table of class `kind` that scrolls inside the page; `label` and its `lines` are HTML."""
    inside = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n'
        f'<table class="{kind}">\n<caption>{label}</caption>\n{inside}\n</table>\n</div>'
    )


_STYLE = """\
:root{color-scheme:light dark;--page:#fff;--ink:#17212b;--soft:#52606d;--line:#d5dbe1}
.s0{--b:#f4f8fc;--t:#17212b}.s1{--b:#deebf7;--t:#17212b}.s2{--b:#c1d9ef;--t:#17212b}.s3{--b:#94c4e4;--t:#17212b}
.s4{--b:#5aa2d1;--t:#0b1620}.s5{--b:#1f67ad;--t:#fff}.s6{--b:#08306b;--t:#fff}
@media screen and (prefers-color-scheme:dark){
:root{--page:#10161d;--ink:#e4eaf0;--soft:#a3b0bd;--line:#2f3b47}
.s0{--b:#151d27;--t:#c9d5e0}.s1{--b:#16283c;--t:#dbe6f0}.s2{--b:#193a5b;--t:#e8f1f9}.s3{--b:#1d5283;--t:#fff}
.s4{--b:#3d86c6;--t:#06121d}.s5{--b:#83b9e8;--t:#06121d}.s6{--b:#d3e9fd;--t:#06121d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
main{max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:separate;border-spacing:2px;font-size:.875rem}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.25rem .5rem;text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:600}thead th{color:var(--soft);vertical-align:bottom}tbody th,thead .first{text-align:left}
.heat th[scope=colgroup]{border-bottom:1px solid var(--line)}
.heat td,.heat thead th[scope]:not(.first){min-width:3.6rem;text-align:center}
td[class^=s],.legend li{background:var(--b);color:var(--t);border-radius:3px}
td.none{color:var(--soft)}
.scroll tbody th,.scroll .first{position:sticky;left:0;background:var(--page);overflow-wrap:anywhere}
.heat tbody th{min-width:6.5rem}.details tbody th{min-width:6.5rem}
.details,.facts{border-collapse:collapse}
.details td,.details th,.facts td,.facts th{border-bottom:1px solid var(--line);vertical-align:top}
.details td{white-space:nowrap}.details th:last-child{text-align:left}
.details td:last-child{white-space:normal;min-width:18rem;text-align:left}
.pairs tr>:nth-child(2){text-align:left;min-width:9rem;overflow-wrap:anywhere}
.facts th,.facts td{text-align:left}.facts th{color:var(--soft);min-width:7rem}.facts td{overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:2px;margin:0 0 .5rem;padding:0;list-style:none;font-size:.8rem}
.legend li{padding:.1rem .6rem;print-color-adjust:exact}
@media print{.scroll{overflow:visible}.scroll th{position:static!important}td{print-color-adjust:exact}
tr{break-inside:avoid}.details{font-size:.7rem}}
"""
