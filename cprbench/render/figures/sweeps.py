"""Retained gain over the share that trains, or that is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cprbench.judge.statistics import Estimate
from cprbench.judge.sweeps import LEAST_SHARES, Sweep
from cprbench.render.document import Drawing
from cprbench.render.figures.style import SOFT, WIDE, arm_looks, legend, listed, mark, mean_mark, scale
from cprbench.render.numbers import percent, score, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF = {"k": "share k of the parameters that train", "q": "share q of the training examples"}
_CURVE = 60  # points of the fitted curve


def shares(sweep: Sweep, name: str) -> Drawing:
    """Return the retained gain over k or q: block points, means with intervals, and the fit where there is one."""
    drawn = [point for point in sweep.points if point.kept.value is not None]
    of = _OF[sweep.share]
    member = sweep.points[0].arm
    whole, look = arm_looks({"full": "full", member: member.partition(" ")[0]}).values()
    told = f"gain ∝ {sweep.share}^x, x = {with_interval(score, sweep.fit.slope)}"
    curve = bool(drawn) and sweep.fitted(drawn[0].share) is not None

    def draw(figure: Figure) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import PercentFormatter

        axes = figure.subplots()
        for point in drawn:
            own = whole if point.arm == "full" else look
            if len(point.kept_by_block) > 1:
                axes.plot(
                    [point.share] * len(point.kept_by_block), point.kept_by_block, ".", color=own.colour, markersize=4
                )
            mean_mark(axes, (point.share, point.kept.value or 0.0), "y", point.kept, own, markersize=6)
        handles = [mark(look, "arm: mean over blocks")]
        handles += [mark(whole, "full, on all data")] if any(p.arm == "full" for p in drawn) else []
        if curve:
            low, high = drawn[0].share, drawn[-1].share  # points are in order of the share
            xs = [low * (high / low) ** (i / _CURVE) for i in range(_CURVE + 1)]
            axes.plot(xs, [sweep.fitted(x) or 0.0 for x in xs], color=SOFT, linestyle="--", linewidth=1.2, zorder=1)
            handles.append(Line2D([], [], color=SOFT, linestyle="--", label=told))
        axes.axhline(1, color=SOFT, linewidth=0.8, zorder=1)
        axes.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
        scale(axes, "x", [point.share for point in sweep.points])
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlabel(of)
        axes.set_ylabel("share of full's gain kept")
        legend(figure, handles, columns=1)

    return Drawing(
        name, f"Retained gain over {sweep.share}: {sweep.name}", _told(sweep, told, curve=curve), draw, (WIDE, 3.6)
    )


def _told(sweep: Sweep, fit: str, *, curve: bool) -> str:
    known = [p for p in sweep.points if p.kept.value is not None]
    words = [f"Share of full's gain kept over the {_OF[sweep.share]}."]
    if known:
        points = [f"{with_interval(percent, p.kept)} at {score(Estimate(p.share))} ({p.arm})" for p in known]
        words.append(f"{'; '.join(points)}.")
    for why in dict.fromkeys(p.kept.why for p in sweep.points if p.kept.value is None):
        without = [p.arm for p in sweep.points if p.kept.value is None and p.kept.why == why]
        words.append(f"Not drawn ({why}): {listed(without)}.")
    if sweep.fit_why:
        words.append(f"No fit: {sweep.fit_why}.")
    else:
        words.append(f"Fit: {fit}, over {len(sweep.fit.shares)} arms{how_well(sweep)}.")
        words += [] if curve else ["It is not drawn, for full's gain is not above zero."]
    return " ".join(words)


def how_well(sweep: Sweep) -> str:
    """Return how well the fit goes through its points, and of which blocks it is where arms have more."""
    slope, r_squared = sweep.fit.slope, sweep.fit.r_squared
    if len(set(sweep.fit.shares)) < LEAST_SHARES:
        told = "; any power goes through two shares"
    else:
        told = "" if r_squared is None else f", R² {score(Estimate(r_squared))} of logarithms"
    fewer = slope.n < max(len(point.kept_by_block) for point in sweep.points)
    return told + (f", fitted to the {slope.n} block{'s' * (slope.n != 1)} that all of them have" if fewer else "")
