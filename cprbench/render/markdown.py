"""The Markdown report: for a README or a pull request. Pure: records in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cprbench.judge.cpr import ArmResult, Group, compare
from cprbench.judge.curves import curves
from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import Figure
from cprbench.judge.retention import retention
from cprbench.render import curves as against
from cprbench.render import retention as page
from cprbench.render.numbers import (
    missing_resources,
    number,
    percent,
    resource_title,
    score,
    signed,
    times,
    with_interval,
)
from cprbench.spec import RESOURCES, RunRecord

#: More arms than these are not all told in the one-line answer.
_ARMS_IN_A_LINE = 6


def render_report(
    records: Sequence[RunRecord], damaged: Mapping[str, str] | None = None, evidence: Evidence | None = None
) -> str:
    """Return the report of records as Markdown; directories that could not be read are named at its end.

    `evidence`: the runs' other files, which give the intervals their item error and the table of curves.
    """
    parts = ["# Capability per resource", ""]
    groups = compare(records, evidence.predictions if evidence else None)
    if not groups:
        parts += ["There are no runs to report.", ""]
    for group in groups:
        parts += _group(group, evidence)
    if damaged:
        parts += ["## Damaged records, left out", ""]
        parts += [f"- `{escape(name)}`: {escape(why)}" for name, why in sorted(damaged.items())]
        parts += [""]
    return "\n".join(parts)


def escape(text: str) -> str:
    """Return text that Markdown and its tables show as it is."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def headline(group: Group, show: Callable[[str], str] = escape) -> str:
    """Return the one-line answer: how much of full's gain each method keeps at which cost; `show` escapes names."""
    known = [arm for arm in group.arms if arm.arm not in ("head", "full") and arm.retained_gain.value is not None]
    told = dict.fromkeys(arm.arm for arm in known)
    if len(known) > _ARMS_IN_A_LINE:  # of a sweep: what kept most, and what did per FLOP
        best = max(known, key=lambda arm: arm.retained_gain.value or 0.0)
        able = [arm for arm in known if arm.floor is None] or [best]  # doing less has the best ratio of all
        cheapest = max(able, key=lambda arm: arm.multiple_of_full["flops"].value or 0.0)
        told = dict.fromkeys([best.arm, cheapest.arm])
    words = []
    for arm in known:
        cost = arm.multiple_of_full["flops"]
        multiple = f" ({times(cost)} full's gain per FLOP)" if cost.value is not None else ""
        if arm.arm in told:
            words.append(f"{show(arm.arm)} keeps {percent(arm.retained_gain)} of full's gain{multiple}")
    if words:
        most = f"Of {len(known)} arms, the most kept and the most per FLOP: " if len(told) < len(known) else ""
        return most + "; ".join(words) + "."
    arms = {arm.method for arm in group.arms}
    if group.reference == "head" and "head" not in arms:
        return "No gains: a model with a new head is measured against method head. Add it to the methods."
    return "No arm can be compared with full tuning here."


def _group(group: Group, evidence: Evidence | None) -> list[str]:
    key = group.key
    suite = (
        f", {'suites' if len(key['suites']) > 1 else 'suite'} {escape(', '.join(key['suites']))}"
        if key["suites"]
        else ""
    )
    limits = "".join(f", {escape(name)} {value}" for name, value in sorted(key["limits"].items()))
    blocks = max((len(arm.blocks) for arm in group.arms), default=0)
    processes = f", {key['processes']} processes" if key["processes"] > 1 else ""
    parts = [
        f"## {escape(key['task'])} v{key['task_version']} x {escape(key['model'])}",
        "",
        headline(group),
        "",
        f"{escape(key['hardware_class'])}{processes}{suite}{limits}. {blocks} block{'s' if blocks != 1 else ''}: "
        + ("points, no interval." if blocks < 3 else "means over blocks, with 95 % intervals."),
    ]
    lacking = sorted({arm.item_error for arm in group.arms if arm.item_error and len(arm.blocks) >= 3})
    parts += [f"Intervals leave out the error of the test items: {escape('; '.join(lacking))}."] if lacking else []
    if key["loop"] != "cprbench":
        parts.append(
            "Measured around an external loop: its recipe and data are not known, so it has a table of its own."
        )
    if key["role"] == "smoke":
        parts.append("Limits were given on the command line: these runs are a smoke test and never rank.")
    against = "method head (the model got a new random head)" if group.reference == "head" else "the untouched base"
    parts += ["", f"Gains are on {escape(group.metric)}, against {against} in the same block.", ""]
    parts += _table(
        [
            "arm",
            "blocks",
            "base",
            "reference",
            "final",
            "per block",
            "gain",
            "retained gain",
            "parameters trained",
        ],
        [
            [
                escape(arm.arm),
                str(len(arm.blocks)),
                score(arm.base),
                score(arm.reference),
                score(arm.final),
                " ".join(f"{value:.3f}" for value in arm.finals),
                with_interval(signed, arm.gain),
                with_interval(percent, arm.retained_gain),
                percent(arm.trained_share),
            ]
            for arm in group.arms
        ],
    )
    parts += ["Cost per run, selection included (billed: select + train, over all attempts):", ""]
    parts += _table(
        ["arm", "seconds", *(resource_title(r) for r in RESOURCES), "search"],
        [
            [escape(arm.arm), number(arm.seconds), *(number(arm.gamma[r]) for r in RESOURCES), _search(arm)]
            for arm in group.arms
        ],
    )
    parts += [
        "Multiple of full: gain per resource, as a multiple of full tuning's (read it beside retained gain):",
        "",
    ]
    parts += _table(
        ["arm", "retained gain", *(resource_title(r) for r in RESOURCES)],
        [
            [
                escape(arm.arm),
                with_interval(percent, arm.retained_gain),
                *(with_interval(times, arm.multiple_of_full[r]) for r in RESOURCES),
            ]
            for arm in group.arms
            if arm.arm != "full"
        ],
    )
    parts += _curves(group, evidence) if evidence else []
    parts += _retention(group) + _predictors(group.records) + _published(group.records) + _sources(group.records)
    parts += _missing(group.records)
    if group.failures:
        parts += ["Runs that did not end well:", ""]
        parts += [
            f"- `{r.run_id}` {escape(r.arm)}, block {r.block}: {r.status}: {escape(r.error or '')}"
            for r in group.failures
        ]
        parts += [""]
    return parts


def _curves(group: Group, evidence: Evidence) -> list[str]:
    found = curves(group, evidence)
    rows = [[escape(cell) for cell in row] for row in against.rows(group, found)]
    return [
        f"### {escape(against.title(found))}",
        "",
        *_table(against.COLUMNS, rows),
        escape(against.legend(found)),
        "",
    ]


def _retention(group: Group) -> list[str]:
    table = retention(group)
    if table is None:
        return []
    columns = list(page.COLUMNS)
    rows = [[escape(row.arm), *page.cells(row, columns)] for row in table.rows]
    why = [f"- {escape(line)}" for line in page.reasons(table)]
    return [
        f"### {page.TITLE}",
        "",
        *_table(["arm", *columns], rows),
        *(line for text in (page.LEGEND, *page.answer(table)) for line in (escape(text), "")),
        *(["Without a number, and why:", "", *why, ""] if why else []),
    ]


def _search(arm: ArmResult) -> str:
    if not arm.trials:
        return arm.search_seconds.why or ""
    seconds = f"{number(arm.search_seconds)} s" if arm.search_seconds.value is not None else arm.search_seconds.why
    return f"{arm.trials} trials, {seconds}" + (", best at the grid's edge" if arm.search_at_edge else "")


def _published(records: Sequence[RunRecord]) -> list[str]:
    """Return what making the files cost that these runs used: printed beside, billed to nobody here."""
    lines = set()
    for record in records:
        used = record.notes.get("blueprint") if record.blueprint else None
        if isinstance(used, dict):
            model = escape(str(used.get("model_id")))
            lines.add(f"Blueprint {(record.blueprint or '')[:12]} of {model}: making it cost {_spent(used)}.")
        chosen = record.notes.get("selection")
        used = chosen.get("scores") if isinstance(chosen, dict) else None
        if isinstance(used, dict):
            name = escape(str(record.spec.selection.settings.get("scores_sha256"))[:12])
            lines.add(f"Scores {name} of {escape(record.arm)}: making them cost {_spent(used)}.")
    return [*(f"{line} Not billed to these runs." for line in sorted(lines)), ""] if lines else []


def _spent(used: Mapping[str, Any]) -> str:
    made = used.get("made")
    made = made if isinstance(made, dict) else {}
    spent = [f"{made[n]:.3g} {resource_title(n)}" for n in RESOURCES if isinstance(made.get(n), int | float)]
    return ", ".join(spent) or "not measured"


def _predictors(records: Sequence[RunRecord]) -> list[str]:
    """Return how good predictions of J were on held-out examples, beside the loss alone."""
    lines = []
    for record in sorted(records, key=lambda r: (r.arm, r.block)):
        chosen = record.notes.get("selection")
        told = chosen.get("predictor") if isinstance(chosen, dict) else None
        if isinstance(told, dict):
            own, loss, inside = (told.get(n) for n in ("spearman", "spearman_of_loss", "spearman_within_class"))
            worse = ""
            if isinstance(own, int | float) and isinstance(loss, int | float) and loss > own:
                worse = " The loss alone ranks better."
            figures = ", ".join(
                f"{name} {value:.3f}" if isinstance(value, int | float) else f"{name} not defined"
                for name, value in (("overall", own), ("within classes", inside), ("the loss alone", loss))
            )
            lines.append(f"- {escape(record.arm)}, block {record.block}: {figures}.{worse}")
    return ["Predicted J against J on held-out examples, Spearman:", "", *lines, ""] if lines else []


def _sources(records: Sequence[RunRecord]) -> list[str]:
    """Return what gamma's numbers cover, which flags their readings carry, and whether the machine was steady."""
    ok = [r for r in records if r.status == "ok"]
    scopes = sorted({r.gamma.energy_scope for r in ok if r.gamma.energy_scope})
    bases = sorted({r.gamma.memory_basis for r in ok if r.gamma.memory_basis})
    flags = sorted({flag for r in ok for reading in r.readings if reading.phase == "billed" for flag in reading.flags})
    words = [f"memory is {', '.join(bases)}"] if bases else []
    words += [f"energy covers {', '.join(scopes)}"] if scopes else []
    words += [f"flags of billed readings: {', '.join(map(escape, flags))}"] if flags else []
    for name in sorted({name for r in ok for name in (r.environment.facts.get("rates") or {})}):
        values = [rates[name] for r in ok if (rates := r.environment.facts.get("rates")) and name in rates]
        if max(values) > 1.15 * min(values):
            words.append(f"{escape(name)} differed by over 15 % between runs of this hardware class")
    return [f"Sources: {'; '.join(words)}.", ""] if words else []


def _missing(records: Sequence[RunRecord]) -> list[str]:
    """Return what gamma lacks and why, once per reason, and what is only modelled: beside, never in its place."""
    reasons: dict[str, set[str]] = {}
    for record in records:
        for resource, why in missing_resources(record).items():
            reasons.setdefault(resource, set()).add(why)
    lines = [
        f"- {resource_title(resource)}: {escape(why)}" for resource in reasons for why in sorted(reasons[resource])
    ]
    modelled = [r for record in records for r in record.readings if r.phase == "billed" and r.source == "modelled"]
    for quantity in sorted({r.quantity for r in modelled if r.value is not None and r.quantity != "co2_kg"}):
        values = [r.value for r in modelled if r.quantity == quantity and r.value is not None]
        mean = number(Figure(sum(values) / len(values)))
        lines.append(
            f"- {escape(quantity)}: {mean} a run on average is an estimate (modelled) and enters no comparison"
        )
    return ["Not measured, and why:", "", *lines, ""] if lines else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]
