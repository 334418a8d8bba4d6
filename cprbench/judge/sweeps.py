"""Families of arms that differ in one share alone, k or q, and in both: what a sweep is made of."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cprbench.judge import scaling
from cprbench.judge.cpr import ArmResult, Comparison, Group
from cprbench.judge.groups import ended_well, k_of, q_of, recipe_of, runs_by_arm
from cprbench.judge.retention import Row, retention
from cprbench.judge.scaling import Line
from cprbench.judge.statistics import Estimate
from cprbench.schema import sha256_of
from cprbench.spec import RunRecord

Share = Literal["k", "q"]
#: Through two points any curve goes.
LEAST_SHARES = 3
#: Method whose arms `full` closes at k = 1; its k-sets are nested and end in all parameters.
_CLOSED_BY_FULL = "partial"


@dataclass(frozen=True)
class SweepPoint:
    """One arm of a sweep. `share` is that of N (k) or of the training examples (q), as reached.

    It is the share asked for where no run of the arm reached one; `kept` then has no value and says why.
    """

    arm: str
    share: float
    kept: Estimate  # retained gain
    kept_by_block: tuple[float, ...]  # gain in the block / mean gain of full over the arm's blocks; their mean is kept


@dataclass(frozen=True)
class Sweep:
    """Arms that differ in nothing but k, or but q, in order of the share."""

    share: Share
    name: str  # of the arms, without the share
    points: tuple[SweepPoint, ...]
    fit: Line  # gain = c share^slope (eq. 8 and 12) over the arms that have gains, in the blocks they have in common
    fit_why: str | None  # why there is no fit
    full_gain: float | None = None  # mean gain of full over the blocks of the fit

    def fitted(self, share: float) -> float | None:
        """Return the fit's retained gain at a share, None where there is no fit or full has no gain to keep."""
        slope, intercept = self.fit.slope.value, self.fit.intercept.value
        if slope is None or intercept is None or self.full_gain is None:
            return None
        return math.exp(intercept + slope * math.log(share)) / self.full_gain


@dataclass(frozen=True)
class Grid:
    """Rows of the retention table by the k and q that were asked for; full is k = 1, all data q = 1.

    A share with one cell alone is left out: it says nothing about the other axis. A cell may be missing.
    """

    name: str
    ks: tuple[float, ...]
    qs: tuple[float, ...]
    cells: dict[tuple[float, float], Row]


def sweeps(group: Group) -> tuple[Sweep, ...]:
    """Return the sweeps over k, then those over q, of a group of comparable runs.

    Arms are a family where selection, budget, stop rule, learning rate and all settings but the share are equal, with
    LEAST_SHARES different shares. An arm on all data closes the q-sweeps of its method, and `full` the k-sweeps of
    method partial with its selection and end. Draws to another arm's bill are in none: their q follows from the bill.
    """
    runs = {name: of for name, of in runs_by_arm(group.records).items() if next(iter(of.values())).arm == name}
    first = {name: next(iter(of.values())) for name, of in runs.items()}
    results = {arm.arm: arm for arm in group.arms}
    ok = {name: ended_well(of) for name, of in runs.items()}
    table = Comparison(group.metric, ok.get("head", {}) if group.reference == "head" else None, ok.get("full", {}))
    found = []
    for share in ("k", "q"):
        for members in _families(first, share).values():
            points = [_point(results[name], ok[name], _asked(first[name], share), share, table) for name in members]
            if len({point.share for point in points}) >= LEAST_SHARES:
                name = _named(members[0], share)
                found.append(_sweep(share, name, sorted(points, key=lambda p: (p.share, p.arm)), ok, table))
    return tuple(sorted(found, key=lambda sweep: (sweep.share, sweep.name)))


def grids(group: Group) -> tuple[Grid, ...]:
    """Return the retention table's rows by k and q, for every method and selection with two of each."""
    table = retention(group)
    rows = {row.arm: row for row in table.rows} if table else {}
    arms = {name: next(iter(of.values())) for name, of in runs_by_arm(group.records).items() if name in rows}
    recipes = {name: _but(recipe_of(record), "k", "q") for name, record in arms.items() if record.arm == name}
    sweep_q = {name for name in recipes if _sweeps_q(arms[name])}
    families: dict[str, list[str]] = defaultdict(list)
    for name in recipes:
        if "k" in arms[name].spec.method.settings and name in sweep_q:
            families[sha256_of(recipes[name])].append(name)
    found = []
    for members in families.values():
        of = recipes[members[0]]
        names = [name for name, own in recipes.items() if _in_grid(own, of, name in sweep_q)]
        # At (k, 1) all data comes first, and a selection that keeps everything gives way.
        names.sort(key=lambda name: (arms[name].spec.selection.name == "all", name))
        cells = {(_asked(arms[name], "k"), _asked(arms[name], "q")): rows[name] for name in names}
        alone = True
        while alone:
            per_k, per_q = (Counter(cell[axis] for cell in cells) for axis in (0, 1))
            kept = {(k, q): cells[k, q] for k, q in sorted(cells) if per_k[k] > 1 and per_q[q] > 1}
            alone, cells = len(kept) < len(cells), kept
        ks, qs = (tuple(sorted({cell[axis] for cell in cells})) for axis in (0, 1))
        if len(ks) > 1 and len(qs) > 1:
            found.append(Grid(_named(_named(members[0], "k"), "q"), ks, qs, cells))
    return tuple(sorted(found, key=lambda grid: grid.name))


def _families(first: Mapping[str, RunRecord], share: Share) -> dict[str, list[str]]:
    """Return the arms of every family, those that close it last; `first`: arm -> any run of it."""
    recipes = {name: recipe_of(first[name]) for name in sorted(first)}
    families: dict[str, list[str]] = defaultdict(list)
    for name, recipe in recipes.items():
        settings = first[name].spec.method.settings
        if _drawn_to_a_bill(first[name]) or not ("k" in settings if share == "k" else _sweeps_q(first[name])):
            continue
        families[sha256_of(_but(recipe, share))].append(name)
    for members in families.values():
        of = recipes[members[0]]
        members += [name for name, own in recipes.items() if name not in members and _closes(own, of, share)]
    return dict(families)


def _closes(own: list[Any], other: list[Any], share: Share) -> bool:
    """Return whether an arm is where a family ends: everything trains, or everything is trained on."""
    if share == "k":
        return own[0] == "full" and other[0] == _CLOSED_BY_FULL and own[2:6] == other[2:6]
    return own[2] == "all" and own[:2] == other[:2] and own[4:6] == other[4:6]


def _in_grid(own: list[Any], other: list[Any], sweeps_q: bool) -> bool:
    """Return whether an arm is a cell of another's grid: same method, or full; same selection, or all."""
    method = own[:2] == other[:2] or (own[0] == "full" and other[0] == _CLOSED_BY_FULL)
    return method and (own[2] == "all" or (own[2:4] == other[2:4] and sweeps_q))


def _but(recipe: list[Any], *shares: Share) -> list[Any]:
    """Return a recipe (groups.recipe_of) without k in its method's settings, q in its selection's."""
    name, settings, selection, chosen, *rest = recipe
    settings = {key: value for key, value in settings.items() if not (key == "k" and "k" in shares)}
    chosen = {key: value for key, value in chosen.items() if not (key == "q" and "q" in shares)}
    return [name, settings, selection, chosen, *rest]


def _drawn_to_a_bill(record: RunRecord) -> bool:
    settings = record.spec.selection.settings
    return bool(settings.get("flops") or settings.get("flops_of"))


def _sweeps_q(record: RunRecord) -> bool:
    """Return whether q says how much data an arm keeps: where there is a band or a bill it says nothing."""
    settings = record.spec.selection.settings
    return "q" in settings and not settings.get("band") and not _drawn_to_a_bill(record)


def _asked(record: RunRecord, share: Share) -> float:
    """Return the share asked for: 1 for an arm that leaves nothing out."""
    settings = record.spec.method.settings if share == "k" else record.spec.selection.settings
    asked = settings.get(share)
    return float(asked) if isinstance(asked, int | float) else 1.0


def _named(arm: str, share: Share) -> str:
    """Return an arm's name without the word of the share: k is a word of the method, q one of the selection."""
    method, mark, selection = arm.partition(" selection=")
    parts = [method, mark + selection]
    of = 0 if share == "k" else 1
    parts[of] = " ".join(word for word in parts[of].split(" ") if not word.startswith(f"{share}="))
    return "".join(parts)


def _point(arm: ArmResult, runs: Mapping[int, RunRecord], asked: float, share: Share, table: Comparison) -> SweepPoint:
    reached = [value for r in runs.values() if (value := (k_of if share == "k" else q_of)(r)) is not None]
    if not reached or len(reached) < len(runs):
        why = f"a run does not tell its {share}" if runs else "no run ended well"
        return SweepPoint(arm.arm, asked, Estimate(None, why=why), ())
    gains, full = table.gains(runs), table.gains({block: table.full[block] for block in runs if block in table.full})
    scale = sum(full.values()) / len(full) if full and arm.retained_gain.value is not None else 0.0
    by_block = tuple(gain / scale for gain in gains.values()) if scale else ()
    return SweepPoint(arm.arm, sum(reached) / len(reached), arm.retained_gain, by_block)


def _sweep(
    share: Share, name: str, points: list[SweepPoint], ok: Mapping[str, Mapping[int, RunRecord]], table: Comparison
) -> Sweep:
    gains = {p.arm: table.gains(ok[p.arm]) for p in points}
    shares = [p.share for p in points if gains[p.arm]]
    able = [gains[p.arm] for p in points if gains[p.arm]]
    blocks = sorted(set.intersection(*(set(of) for of in able))) if able else []
    fit = scaling.power_fit(shares, {block: [of[block] for of in able] for block in blocks})
    full = table.gains({block: table.full[block] for block in blocks if block in table.full})
    whole = sum(full.values()) / len(full) if full and len(full) == len(blocks) else None
    why = fit.slope.why if fit.slope.value is None else None
    if not blocks:
        why = "no block in which all arms have a gain" if able else "no arm has a gain"
    return Sweep(share, name, tuple(points), fit, why, whole if whole is not None and whole > 0 else None)
