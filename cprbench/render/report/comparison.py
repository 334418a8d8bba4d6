"""The tables of a comparison: the main one, scores, costs, multiples, and the blocks behind every mean."""

from __future__ import annotations

from collections.abc import Callable

from cprbench.judge.cpr import ArmResult, Group, cost_of
from cprbench.judge.groups import NOT_MEASURED, Figure, Told, runs_by_arm, score_of
from cprbench.judge.statistics import Estimate
from cprbench.render.document import Cell, Table
from cprbench.render.numbers import (
    number,
    percent,
    resource_title,
    score,
    signed,
    times,
    with_interval,
)
from cprbench.render.report.answer import RESOURCE, verdict
from cprbench.spec import RESOURCES, RunRecord


def cell(show: Callable[[Told], str], told: Told) -> Cell:
    """Return a number as `show` writes it, sorted by itself; or its reason."""
    return Cell(show(told), told.value)


def interval(show: Callable[[Told], str], estimate: Estimate) -> Cell:
    """Return an estimate with its interval, sorted by its value."""
    return Cell(with_interval(show, estimate), estimate.value)


def _in_short(estimate: Estimate) -> Cell:
    told = interval(times, estimate)
    return Cell("n/e") if told.text.startswith("n/e") else told


def count(value: int) -> Cell:
    """Return a count."""
    return Cell(str(value), value)


def main(group: Group) -> Table:
    """Return what a reader wants first and a paper prints: a row per arm."""
    unit = resource_title(RESOURCE)
    return Table(
        "main",
        "What each arm keeps, and what it costs",
        (
            "arm",
            "blocks",
            group.metric,
            "gain",
            "retained gain",
            f"{unit} x full",
            "gain per FLOP x full",
            "against full",
        ),
        tuple(
            (
                Cell(arm.arm),
                count(len(arm.blocks)),
                interval(score, arm.final),
                interval(signed, arm.gain),
                interval(percent, arm.retained_gain),
                interval(times, arm.cost_of_full[RESOURCE]),
                _in_short(arm.multiple_of_full[RESOURCE]),
                Cell(verdict(group, arm)),
            )
            for arm in group.arms
        ),
        (
            f"Retained gain: share of full tuning's gain. {unit} x full: billed {unit}, selection included, as a "
            "multiple of full tuning's. Gain per FLOP x full rewards doing less, so read it beside the retained gain; "
            "n/e: it does not exist, and the table of multiples says why.",
        ),
        words=(0, 7),
    )


def scores(group: Group) -> Table:
    """Return psi before and after, and what is trained."""
    return Table(
        "scores",
        f"Scores: {group.metric} on the test items",
        ("arm", "blocks", "failed", "base", "reference", "final", "gain", "retained gain", "parameters trained"),
        tuple(
            (
                Cell(arm.arm),
                count(len(arm.blocks)),
                count(arm.failed),
                cell(score, arm.base),
                cell(score, arm.reference),
                interval(score, arm.final),
                interval(signed, arm.gain),
                interval(percent, arm.retained_gain),
                cell(percent, arm.trained_share),
            )
            for arm in group.arms
        ),
        (
            "Base: before adaptation. Reference: what the gain is measured against, "
            + ("method head of the same block." if group.reference == "head" else "the base itself."),
        ),
    )


def costs(group: Group) -> Table:
    """Return gamma per run."""
    return Table(
        "costs",
        "Cost per run, selection included (billed: select + train, over all attempts)",
        ("arm", "seconds", *map(resource_title, RESOURCES), "search"),
        tuple(
            (
                Cell(arm.arm),
                cell(number, arm.seconds),
                *(cell(number, arm.gamma[name]) for name in RESOURCES),
                Cell(search(arm), arm.search_seconds.value),
            )
            for arm in group.arms
        ),
        (
            "Means over blocks. Where an arm validates to decide (stop rule), validation is billed too. The search for "
            "a learning rate is a cost of its own, in no other column.",
        ),
        words=(0, len(RESOURCES) + 2),
    )


def multiples(group: Group) -> Table:
    """Return gain per resource as a multiple of full's."""
    return Table(
        "multiples",
        "Multiple of full: gain per resource, as a multiple of full tuning's",
        ("arm", "retained gain", *map(resource_title, RESOURCES)),
        tuple(
            (
                Cell(arm.arm),
                interval(percent, arm.retained_gain),
                *(interval(times, arm.multiple_of_full[name]) for name in RESOURCES),
            )
            for arm in group.arms
            if arm.arm != "full"
        ),
        ("Read it beside the retained gain: a run that does next to nothing has the best ratio of all.",),
    )


def blocks(group: Group) -> Table:
    """Return the runs behind every mean: psi and cost of each block."""
    runs = runs_by_arm(group.records)
    rows = []
    for arm in group.arms:
        for block, record in sorted(runs[arm.arm].items()):
            figures = [Figure(cost_of(record, axis), NOT_MEASURED) for axis in ("seconds", *RESOURCES)]
            rows.append(
                (
                    Cell(arm.arm),
                    count(block),
                    Cell(record.run_id + (", resumed" if record.resumed else "")),
                    Cell(record.status),
                    _psi(record, group.metric, "base"),
                    _psi(record, group.metric, "final"),
                    *(cell(number, figure) for figure in figures),
                    count(record.attempts),
                )
            )
    return Table(
        "blocks",
        "The runs behind every mean",
        ("arm", "block", "run", "status", "base", "final", "seconds", *map(resource_title, RESOURCES), "attempts"),
        tuple(rows),
        words=(0, 2, 3),
    )


def _psi(record: RunRecord, metric: str, when: str) -> Cell:
    return cell(score, Figure(score_of(record, metric, when), "not scored"))


def search(arm: ArmResult) -> str:
    """Return what finding the learning rate took, or why nothing is told."""
    if not arm.trials:
        return arm.search_seconds.why or ""
    spent = arm.search_seconds
    seconds = f"{number(spent)} s" if spent.value is not None else str(spent.why)
    return f"{arm.trials} trial{'s' * (arm.trials != 1)}, {seconds}" + (
        ", best at the grid's edge" if arm.search_at_edge else ""
    )
