"""Evidence -> Report: what is said, in which order. The answer comes first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cprbench.judge.cpr import Group, compare
from cprbench.judge.curves import Curves, curves
from cprbench.judge.evidence import Evidence
from cprbench.judge.ledger import ledger
from cprbench.judge.statistics import LEAST_FOR_INTERVAL
from cprbench.judge.sweeps import grids, sweeps
from cprbench.judge.verdicts import Verdict
from cprbench.render import heatmap
from cprbench.render.document import Cell, Choice, Drawing, Items, Part, Prose, Report, Section, Table
from cprbench.render.figures import ledger as ledger_figure
from cprbench.render.figures import plane, running
from cprbench.render.figures import sweeps as sweep_figures
from cprbench.render.numbers import resource_title
from cprbench.render.report import carbon, comparison, curve_tables, provenance, sweep_tables
from cprbench.render.report.answer import RESOURCE, answers
from cprbench.render.titles import titles_of
from cprbench.render.verdicts import answer_of
from cprbench.spec import RESOURCES

TITLE = "Capability per resource"
#: For a reader who has not read the paper.
WORDS = (
    "arm: one method with its settings, and which examples it trains on",
    "block: one repetition, with the same seed for all arms; one or two blocks are points, which show nothing",
    "psi: the score of the task; gamma: what a run cost (hours, kWh, GB·h, CO2, FLOPs), choosing included",
    "gain: what adaptation added to the score, over method head (where the model got a new head) or over the base",
    "retained gain: gain as a share of full tuning's; multiple of full: gain per resource, as a multiple of full's",
    "capability floor: an arm that keeps less than half of full's gain, or none for certain, ranks nowhere",
    "k: the share of the parameters that train; q: the share of the examples that are trained on",
    "n/e: the number does not exist; not measured: no meter read it, so it is no number and never 0",
)
#: The order in which a reader is offered the resources: what is counted first, for it compares everywhere.
_OFFERED = (RESOURCE, *(name for name in RESOURCES if name != RESOURCE))


def report_of(evidence: Evidence, verdicts: Sequence[Verdict] = (), groups: Sequence[Group] | None = None) -> Report:
    """Return the report of all that lies in a folder of runs; `verdicts`: of the claims that were checked on it.

    `groups`: what compare() said of the same evidence, where a caller has asked it already.
    """
    found = compare(evidence.records, evidence.predictions) if groups is None else groups
    titles = titles_of(found)
    sections = [
        _group(group, evidence, f"runs-{i}", title)
        for i, (group, title) in enumerate(zip(found, titles, strict=True), 1)
    ]
    rest = [*_claims(verdicts)]
    for i, file in enumerate(sorted(evidence.blueprints), 1):
        blueprint = evidence.blueprints[file]
        rest.append(heatmap.section(blueprint, f"blueprint-{i}", f"{heatmap.title_of(blueprint)} ({file})"))
    if evidence.records:
        rest.append(Section("carbon", "Compute and carbon statement", (carbon.statement(evidence.records),)))
    if not found:
        said = "There are no runs to report" + (", only trials of a search." if evidence.records else ".")
        rest.insert(0, Section("none", "No runs", (Prose((said,), lead=True),)))
    listed = {record.run_id for group in found for record in group.failures}
    if others := [r for r in evidence.records if r.status != "ok" and r.run_id not in listed]:
        parts = (Items("Repeated by a later run, or trials of a search", tuple(map(provenance.failed, others))),)
        rest.append(Section("repeated", "Other runs that did not end well", parts))
    rest.append(Section("words", "Words", (Items("What the words mean", WORDS, folded=True),)))
    if evidence.damaged:
        told = tuple(f"{name}: {why}" for name, why in sorted(evidence.damaged.items()))
        rest.append(Section("damaged", "Damaged records, left out", (Items("What is wrong with them", told),)))
    return Report(TITLE, tuple(sections), tuple(rest))


def _group(group: Group, evidence: Evidence, name: str, title: str) -> Section:
    parts: tuple[Part, ...] = (Prose(answers(group), lead=True), comparison.main(group), Prose(_made(group)))
    found = {resource: curves(group, evidence, resource) for resource in _OFFERED}
    inside = [
        ("plane", "Capability against cost", _plane(group, found)),
        ("sweeps", "Shares of parameters and of data", _sweeps(group)),
        ("running", "While training", _running(group, evidence, found[RESOURCE])),
        ("scores", "Scores, block by block", _scores(group)),
        ("costs", "Costs, phase by phase", _costs(group)),
        ("settings", "Settings", _settings(group)),
        ("sources", "Sources, and what was not measured", _sources(group)),
    ]
    sections = tuple(Section(f"{name}-{stem}", heading, told) for stem, heading, told in inside if told)
    return Section(name, title, parts, sections)


def _settings(group: Group) -> tuple[Part, ...]:
    """Return what was asked of each arm, what all share, and how selections predicted."""
    return (
        provenance.settings_table(group),
        provenance.recipe_table(group),
        *provenance.predictors(group.records),
        *provenance.published(group.records),
    )


def _made(group: Group) -> tuple[str, ...]:
    """Return where and how these runs were made, and what that does to their numbers."""
    key = group.key
    suites = f", {'suites' if len(key['suites']) > 1 else 'suite'} {', '.join(key['suites'])}" if key["suites"] else ""
    limits = "".join(f", {name} {value}" for name, value in sorted(key["limits"].items()))
    blocks = max((len(arm.blocks) for arm in group.arms), default=0)
    processes = f", {key['processes']} processes" if key["processes"] > 1 else ""
    points = blocks < LEAST_FOR_INTERVAL
    told = [
        f"{key['hardware_class']}{processes}{suites}{limits}. {blocks} block{'s' if blocks != 1 else ''}: "
        + ("points, no interval." if points else "means over blocks, with 95 % intervals.")
    ]
    shown = [e for arm in group.arms for e in (arm.final, arm.gain, arm.retained_gain) if e.low is not None]
    lacking = sorted({estimate.no_items for estimate in shown if estimate.no_items})
    told += [f"Intervals leave out the error of the test items: {'; '.join(lacking)}."] if lacking else []
    if key["loop"] != "cprbench":
        told.append(
            "Measured around an external loop: its recipe and data are not known, so it has a table of its own."
        )
    against = "method head (the model got a new random head)" if group.reference == "head" else "the untouched base"
    told.append(f"Gains are on {group.metric}, against {against} in the same block.")
    return tuple(told)


def _plane(group: Group, found: Mapping[str, Curves]) -> tuple[Part, ...]:
    drawn = [(resource_title(name), plane.plane(group, of)) for name, of in found.items()]
    options = tuple((title, drawing) for title, drawing in drawn if drawing is not None)
    parts: list[Part] = []
    if options:
        parts.append(
            Choice("plane", f"{group.metric} against cost per run, with the Pareto front", "Resource", options)
        )
    scored = any(arm.final.value is not None for arm in group.arms)
    if absent := [title for title, drawing in drawn if drawing is None]:
        why = "no arm has a number of it" if scored else f"no arm has a number of {group.metric}"
        parts.append(Prose((f"No figure, for {why}: {', '.join(absent)}.",)))
    return (*parts, curve_tables.front_table(group, found[RESOURCE]), comparison.multiples(group))


def _sweeps(group: Group) -> tuple[Part, ...]:
    found = sweeps(group)
    parts: list[Part] = []
    for share in ("k", "q"):
        own = [sweep for sweep in found if sweep.share == share]
        drawn = [sweep_figures.shares(sweep, f"{share}-sweep-{i}") for i, sweep in enumerate(own, 1)]
        if len(drawn) > 1:
            options = tuple((sweep.name, drawing) for sweep, drawing in zip(own, drawn, strict=True))
            parts.append(Choice(f"{share}-sweeps", f"Retained gain over {share}", "Family of arms", options))
        else:
            parts += drawn
        table = sweep_tables.sweep_table(group, share, found)
        parts += [] if table is None else [table]
    for i, grid in enumerate(grids(group), 1):
        parts.append(sweep_tables.grid_table(grid, "k-by-q" if i == 1 else f"k-by-q-{i}"))
    return (*parts, *sweep_tables.retention_parts(group))


def _running(group: Group, evidence: Evidence, found: Curves) -> tuple[Part, ...]:
    """Return the curves of the validations, where there are any, and where a stop rule ended a run."""
    drawn = running.running(group, evidence)
    told = () if drawn is None else (drawn, curve_tables.running_table(group, found))
    return (*told, *provenance.stops(group.records))


def _scores(group: Group) -> tuple[Part, ...]:
    return (
        *_known(plane.points(group)),
        comparison.scores(group),
        comparison.blocks(group),
        *provenance.failures(group),
    )


def _costs(group: Group) -> tuple[Part, ...]:
    found = ledger(group)
    drawn = _known(ledger_figure.phases(found))
    return (comparison.costs(group), *drawn, provenance.ledger_table(group, found), provenance.flops_table(found))


def _sources(group: Group) -> tuple[Part, ...]:
    covers = provenance.covers(group.records)
    return (
        *((Prose(covers),) if covers else ()),
        *provenance.missing(group.records),
        provenance.sources_table(group.records),
        provenance.versions_table(group.records),
    )


def _known(*drawings: Drawing | None) -> tuple[Part, ...]:
    return tuple(drawing for drawing in drawings if drawing is not None)


# --- what holds of all groups ------------------------------------------------------------------------


def _claims(verdicts: Sequence[Verdict]) -> Iterator[Section]:
    if not verdicts:
        return
    told = [v for v in verdicts if v.value is not None or v.verdict != "open"]
    untold = [v for v in verdicts if v.value is None and v.verdict == "open"]
    parts: list[Part] = [
        Prose(
            (", ".join(f"{sum(v.verdict == w for v in verdicts)} {w}" for w in ("supported", "refuted", "open")) + ".",)
        )
    ]
    if told:
        parts.append(
            Table(
                "claims",
                "Claims that these runs say something about",
                ("claim", "verdict", "measured", "why", "statement", "source"),
                tuple(
                    (
                        Cell(v.id),
                        Cell(v.verdict),
                        Cell(answer_of(v), v.value),
                        Cell(v.reason),
                        Cell(v.text),
                        Cell(v.source),
                    )
                    for v in told
                ),
                words=(0, 1, 2, 3, 4, 5),
            )
        )
    if untold:
        lines = tuple(f"{v.id}: {v.reason}" for v in untold)
        parts.append(Items(f"{len(untold)} claims that these runs cannot answer", lines, folded=True))
    yield Section("claims", "Claims", tuple(parts))
