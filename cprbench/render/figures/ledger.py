"""Where the seconds of each arm went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cprbench.judge.groups import Figure as Number
from cprbench.judge.ledger import ArmLedger
from cprbench.render.document import Drawing
from cprbench.render.figures.style import COLOURS, HATCHES, INK, MOST_ROWS, WIDE, label, listed, rows, scale, set_rows
from cprbench.render.numbers import number
from cprbench.spec import PHASES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEARCH = "search"
_MOST_TOLD = 8


def phases(ledger: Sequence[ArmLedger]) -> Drawing | None:
    """Return the mean seconds of a run by phase, stacked, a bar per arm; None where no arm has any.

    Trials of a search are shared out over the runs whose rate they found.
    """
    arms = [arm for arm in ledger if arm.runs and any(arm.seconds[phase].value for phase in PHASES)]
    if not arms:
        return None
    most = sorted(arms, key=lambda a: math.fsum(a.seconds[phase].value or 0.0 for phase in PHASES))[-MOST_ROWS:]
    shorter, arms = [a.arm for a in arms if a not in most], [a for a in arms if a in most]
    seconds: dict[str, list[float | None]] = {
        _SEARCH: [0.0 if not a.trials else _each(a.search_seconds.value, a.runs) for a in arms],
        **{phase: [a.seconds[phase].value for a in arms] for phase in PHASES},
    }
    shown = [name for name, values in seconds.items() if any(values)]
    labels = [label(arm.arm) for arm in arms]
    places, high = rows(labels)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [0.0] * len(arms)
        for name in shown:
            i = list(seconds).index(name)
            values = [value or 0.0 for value in seconds[name]]
            axes.barh(
                places,
                values,
                left=ends,
                height=0.18,
                label=name,
                color=COLOURS[i],
                hatch=HATCHES[i],
                edgecolor=INK,
                linewidth=0.5,
            )
            ends = [end + value for end, value in zip(ends, values, strict=True)]
        scale(axes, "x", [0.0])
        axes.grid(visible=False, axis="y")
        set_rows(axes, labels)
        axes.set_xlabel("seconds per run")
        figure.legend(loc="outside lower left", ncols=3)

    told = []
    for row, arm in enumerate(arms[:_MOST_TOLD]):
        known = [(name, Number(seconds[name][row])) for name in shown]
        parts = [f"{name} {number(value)} s" for name, value in known if value.value is not None]
        told.append(f"{arm.arm}: {', '.join(parts)}")
    words = [f"Mean seconds of a run by phase, over all its attempts. {'; '.join(told)}."]
    if len(arms) > _MOST_TOLD:
        words.append(f"{len(arms) - _MOST_TOLD} more arms are in the table.")
    for name, values in seconds.items():
        if lacking := [arm.arm for arm, value in zip(arms, values, strict=True) if value is None]:
            words.append(f"Without a bar of {name}, for it was not measured: {listed(lacking)}.")
    if shorter:
        words.append(f"Not drawn, for they took less: {listed(shorter)}.")
    if absent := [arm.arm for arm in ledger if arm not in arms and arm.arm not in shorter]:
        words.append(f"Left out, for they have no seconds: {listed(absent)}.")
    return Drawing("ledger", "Seconds per run, by phase", " ".join(words), draw, (WIDE, 1.2 + high))


def _each(total: float | None, runs: int) -> float | None:
    return None if total is None else total / runs
