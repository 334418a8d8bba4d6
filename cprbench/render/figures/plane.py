"""Capability against cost, and the blocks behind every mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cprbench.judge.cpr import ArmResult, Group, block_gains, cost_of, of_two_kinds
from cprbench.judge.curves import Curves
from cprbench.judge.groups import ended_well, runs_by_arm, score_of
from cprbench.render.document import Drawing
from cprbench.render.figures.style import (
    IN_LEGEND,
    LETTERS,
    MOST_ROWS,
    SOFT,
    WIDE,
    Look,
    label,
    legend,
    legend_inches,
    listed,
    looks_singly,
    mark,
    mean_mark,
    method_looks,
    rows,
    scale,
    set_rows,
)
from cprbench.render.numbers import number, resource_title, score, signed, with_interval
from cprbench.spec import RunRecord, falls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More arms than these are told by their method, and only those on the front by name.
_NAMED = 8
_Runs = Mapping[int, RunRecord]


def plane(group: Group, found: Curves) -> Drawing | None:
    """Return the psi-gamma plane of one resource: block points, means with intervals, the Pareto front.

    None where no arm has both. Arms that lack a cost or a score are left out and named in the text.
    """
    resource, unit = found.resource, resource_title(found.resource)
    arms = [a for a in group.arms if a.gamma[resource].value is not None and a.final.value is not None]
    if not arms:
        return None
    runs = {name: ended_well(of) for name, of in runs_by_arm(group.records).items()}
    kinds = of_two_kinds(resource, [r for arm in arms for r in runs[arm.arm].values()])
    on = [] if kinds else sorted((a for a in arms if a.arm in found.front.arms), key=lambda a: _cost(a, resource))
    singly = len(arms) <= _NAMED
    named = {a.arm: a.arm if singly else a.method for a in arms}
    style = looks_singly(group.arms, named) if singly else method_looks(named.values())
    numbers = {} if singly else {a.arm: str(i) for i, a in enumerate(on, 1)}
    entries = [(style[name], label(name, IN_LEGEND)) for name in dict.fromkeys(named.values())]
    hollow = [a for a in arms if a.floor is not None]
    keys = [f"{numbers[a.arm]}  {label(a.arm, 44, 2)}" for a in on if a.arm in numbers]
    sign = -1.0 if falls(group.metric) else 1.0  # the front's are turned so that more is better
    psi = f"{label(group.metric, 36, 1)} ({'lower' if falls(group.metric) else 'higher'} is better)"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for arm in arms:
            look = style[named[arm.arm]]
            points = [(cost_of(r, resource), score_of(r, group.metric, "final")) for r in runs[arm.arm].values()]
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), ".", color=look.colour, markersize=3)
            face = look.colour if arm.floor is None else "none"
            at = (_cost(arm, resource), arm.final.value or 0.0)
            mean_mark(axes, at, "y", arm.final, look, markerfacecolor=face, markersize=6)
        handles = [mark(look, name) for look, name in entries]
        if hollow:
            handles.append(mark(Look(SOFT, "o", "-"), "hollow: cannot be on it", hollow=True))
        if on:
            steps = sorted((cost, sign * score) for cost, score in found.front.points.values())
            edge = max(_cost(a, resource) for a in arms)
            (line,) = axes.plot(
                *zip(*steps, (edge, steps[-1][1]), strict=True),
                drawstyle="steps-post",
                color=SOFT,
                linestyle="--",
                linewidth=1,
                zorder=1,
                label="Pareto front",
            )
            handles.append(line)
        for place in sorted({(_cost(a, resource), a.final.value) for a in on if a.arm in numbers}):
            text = ", ".join(numbers[a.arm] for a in on if (_cost(a, resource), a.final.value) == place)
            axes.annotate(text, place, xytext=(-4, 4), textcoords="offset points", ha="right", va="bottom")
        scale(axes, "x", [c for a in arms for r in runs[a.arm].values() if (c := cost_of(r, resource)) is not None])
        axes.set_xlabel(f"billed {unit} per run")
        axes.set_ylabel(psi)
        if keys:
            axes.set_title("\n".join(["on the front, from the left:", *keys]), loc="left", fontsize=LETTERS)
        legend(figure, handles)

    labels = [name for _, name in entries] + ["", ""]
    high = 3.0 + legend_inches(labels) + 0.2 * sum(key.count("\n") + 1 for key in ["", *keys] if keys)
    return Drawing(
        name=f"plane-{resource}",
        title=f"{group.metric} against billed {unit} per run",
        text=_told(group, arms, on, found, kinds),
        draw=draw,
        inches=(WIDE, high),
    )


def _cost(arm: ArmResult, resource: str) -> float:
    return arm.gamma[resource].value or 0.0


def _told(group: Group, arms: list[ArmResult], on: list[ArmResult], found: Curves, kinds: str | None) -> str:
    resource, unit = found.resource, resource_title(found.resource)

    def place(arm: ArmResult) -> str:
        return f"{arm.arm}: {with_interval(score, arm.final)} at {number(arm.gamma[resource])} {unit}"

    words = [f"Mean {group.metric} of {len(arms)} arms over their mean {unit} per run, a small dot per block."]
    if kinds:
        words.append(f"{kinds[:1].upper()}{kinds[1:]}, so there is no front.")
    elif on:
        words.append(f"On the Pareto front: {'; '.join(place(arm) for arm in on)}.")
    else:
        words.append(f"No front: {found.front.why or 'no arm can be on it'}.")
    rest = [arm for arm in arms if arm not in on]
    if rest and len(arms) <= _NAMED:
        words.append(f"Off it: {'; '.join(place(arm) for arm in rest)}.")
    if any(set(arm.blocks) != set(found.front.blocks) for arm in on):
        shared = ", ".join(map(str, found.front.blocks))
        words.append(f"The line is of means over block {shared}, which the arms on it share; marks are of all blocks.")
    for floor in dict.fromkeys(arm.floor for arm in arms if arm.floor is not None):
        words.append(f"Hollow ({floor}): {listed([arm.arm for arm in arms if arm.floor == floor])}.")
    for lacking, what in (
        ([a.arm for a in group.arms if a.final.value is None], "they have no score"),
        ([a.arm for a in group.arms if a.gamma[resource].value is None and a.final.value is not None], "not measured"),
    ):
        if lacking:
            why = what if what != "not measured" else f"their {unit} were not measured"
            words.append(f"Left out, for {why}: {listed(lacking)}.")
    return " ".join(words)


def points(group: Group) -> Drawing | None:
    """Return the gain of every block, a row per arm, with the mean and its interval; None where no arm has a gain."""
    runs = {name: ended_well(of) for name, of in runs_by_arm(group.records).items()}
    head = runs.get("head", {}) if group.reference == "head" else None
    gains = {a.arm: list(block_gains(runs[a.arm], group.metric, head).values()) for a in group.arms}
    arms = [a for a in group.arms if a.gain.value is not None and gains[a.arm]]
    if not arms:
        return None
    most = sorted(arms, key=lambda a: (a.arm == "full", a.gain.value or 0.0))[-MOST_ROWS:]
    smaller, arms = [a.arm for a in arms if a not in most], [a for a in arms if a in most]
    style = method_looks(a.method for a in arms)
    labels = [label(a.arm) for a in arms]
    places, high = rows(labels)
    full = next((a.gain.value for a in arms if a.arm == "full"), None)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, arm in zip(places, arms, strict=True):
            look = style[arm.method]
            if len(gains[arm.arm]) > 1:
                axes.plot(gains[arm.arm], [row] * len(gains[arm.arm]), ".", color=look.colour, markersize=4)
            mean_mark(axes, (arm.gain.value or 0.0, row), "x", arm.gain, look, markersize=6)
        if full is not None:
            axes.axvline(full, color=SOFT, linestyle="--", linewidth=1, zorder=1)
            axes.annotate(
                "full",
                (full, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
            )
        axes.axvline(0, color=SOFT, linewidth=0.8, zorder=1)
        scale(axes, "x", [0.0])
        set_rows(axes, labels)
        axes.set_xlabel(f"gain in {label(group.metric, 24, 1)} over {_reference(group)}")

    words = [f"Gain in {group.metric} over {_reference(group)}, a row per arm, a small dot per block."]
    words.append(f"{'; '.join(f'{a.arm}: {with_interval(signed, a.gain)}' for a in arms[:_NAMED])}.")
    if len(arms) > _NAMED:
        words.append(f"{len(arms) - _NAMED} more arms are in the table.")
    if smaller:
        words.append(f"Not drawn, for their gains are smaller: {listed(smaller)}.")
    if lacking := [a.arm for a in group.arms if a not in arms and a.arm not in smaller]:
        words.append(f"Without a gain: {listed(lacking)}.")
    return Drawing(
        "per-block",
        f"Gain in {group.metric} of every block",
        " ".join(words),
        draw,
        (WIDE, 0.8 + high),
    )


def _reference(group: Group) -> str:
    return "method head" if group.reference == "head" else "the untouched base"
