"""The answer of a group of runs in words: how much of full tuning's gain each arm keeps, at which cost, and whether
that is shown. A number without an interval is a point, and a point shows nothing."""

from __future__ import annotations

from collections.abc import Callable

from cprbench.judge.cpr import ArmResult, Group
from cprbench.judge.frontier import BELOW_FLOOR
from cprbench.judge.statistics import LEAST_FOR_INTERVAL, LEAST_FOR_VERDICT
from cprbench.render.numbers import percent, resource_title, times, with_interval

#: More arms than these are not all told.
_ARMS_IN_A_LINE = 6
SMOKE = "A smoke test: limits or a recipe were given on the command line, so these runs never rank."
RESOURCE = "flops"  # of the answer: counted, so it compares across hardware


def headline(group: Group, show: Callable[[str], str] = str) -> str:
    """Return the one-line answer, with the verdict once where all arms have the same; `show` escapes names."""
    known, told = _told(group)
    if not told:
        return " ".join((no_answer(group), *_smoke(group)))
    verdicts = {arm.arm: show(verdict(group, arm)) for arm in told}
    alike = len(set(verdicts.values())) == 1
    words = []
    for arm in told:
        cost = arm.multiple_of_full[RESOURCE]
        multiple = f" ({times(cost)} its gain per FLOP)" if cost.value is not None else ""
        own = "" if alike else f": {verdicts[arm.arm]}"
        words.append(f"{show(arm.arm)} keeps {percent(arm.retained_gain)} of full's gain{multiple}{own}")
    said = _few(known, told) + "; ".join(words) + (f": {verdicts[told[0].arm]}." if alike else ".")
    return " ".join((said, *_smoke(group)))


def answers(group: Group) -> tuple[str, ...]:
    """Return a sentence per arm that is told: what it keeps, at which cost, with intervals and the verdict."""
    known, told = _told(group)
    sentences = []
    for arm in told:
        cost, multiple = arm.cost_of_full[RESOURCE], arm.multiple_of_full[RESOURCE]
        at = f" for {with_interval(times, cost)} its {resource_title(RESOURCE)}" if cost.value is not None else ""
        per = f" ({with_interval(times, multiple)} its gain per FLOP)" if multiple.value is not None else ""
        kept = with_interval(percent, arm.retained_gain)
        sentences.append(f"{arm.arm} keeps {kept} of full's gain{at}{per}: {verdict(group, arm)}.")
    few = [_few(known, told).strip()] if len(told) < len(known) else []
    return (*few, *(sentences or [no_answer(group)]), *_smoke(group))


def _smoke(group: Group) -> tuple[str, ...]:
    return (SMOKE,) if group.key["role"] == "smoke" else ()


def verdict(group: Group, arm: ArmResult, resource: str = RESOURCE) -> str:
    """Return in words where an arm stands against full tuning on psi and one resource."""
    if not arm.blocks:
        return "no run ended well"
    if arm.arm == "full":
        return "full itself"
    if (arm.arm, group.reference) == ("head", "head"):
        return "the reference of gains"
    against, cost = arm.against_full, arm.cost_of_full[resource]
    if against.value is None:
        return arm.retained_gain.why or against.why or "not measured"
    if cost.value is None:
        return cost.why or "not measured"
    if len(arm.blocks) < LEAST_FOR_INTERVAL:
        return f"points only, {len(arm.blocks)} block{'s' if len(arm.blocks) > 1 else ''}"
    if against.low is None or cost.low is None:
        return f"no verdict: {(against if against.low is None else cost).why}"
    indicative = len(arm.blocks) < LEAST_FOR_VERDICT
    return _words(arm, arm.quadrant[resource]) + (
        f" (indicative: fewer than {LEAST_FOR_VERDICT} blocks)" if indicative else ""
    )


def _words(arm: ArmResult, quadrant: str) -> str:
    word, _, why = quadrant.partition(": ")
    better = (arm.against_full.value or 0.0) > 0
    said = {
        "dominates": "dominates full: no worse on either, better on one",
        "dominated": "dominated by full: no better on either, worse on one",
        "trade-off": "trade-off: better, but costs more" if better else "trade-off: cheaper, but worse",
    }.get(word, "not told apart from full" + (f" ({why})" if why and why != BELOW_FLOOR else ""))
    if arm.floor is None or word == "dominates":
        return said
    known = arm.retained_gain.value is not None
    return f"{said}, {BELOW_FLOOR + ' (' + arm.floor + ')' if known else arm.floor}"


def no_answer(group: Group) -> str:
    """Return why no arm can be told."""
    arms = {arm.method for arm in group.arms}
    if group.reference == "head" and "head" not in arms:
        return "No gains: a model with a new head is measured against method head. Add it to the methods."
    return "No arm can be compared with full tuning here."


def _told(group: Group) -> tuple[list[ArmResult], list[ArmResult]]:
    """Return the arms that have a retained gain, and those of them that the answer names."""
    others = (arm for arm in group.arms if arm.method != "head" and arm.arm != "full")
    known = [arm for arm in others if arm.retained_gain.value is not None]
    if len(known) <= _ARMS_IN_A_LINE:
        return known, known
    # Of a sweep: what kept most, and what did per FLOP. Doing less has the best ratio of all: the floor keeps it out.
    best = max(known, key=lambda arm: arm.retained_gain.value or 0.0)
    able = [arm for arm in known if arm.floor is None and arm.multiple_of_full[RESOURCE].value is not None]
    cheapest = max(able, key=lambda arm: arm.multiple_of_full[RESOURCE].value or 0.0, default=best)
    return known, [arm for arm in known if arm.arm in (best.arm, cheapest.arm)]


def _few(known: list[ArmResult], told: list[ArmResult]) -> str:
    if len(told) == len(known):
        return ""
    counted = any(arm.multiple_of_full[RESOURCE].value is not None for arm in told)
    return f"Of {len(known)} arms, the most kept{' and the most per FLOP' if counted else ''}: "
