"""Predicted against measured retention and cost in the cells of a sweep over k and q (paper 4.3, 4.4, B.5).

The reference is arm `full` on all data: k = 1, q = 1. Each row stands beside two arms that train the same on
examples drawn by lot: at equal q, and at equal billed FLOPs, for choosing examples is paid for. Where all data is
used, submodules are drawn by lot, at equal k. Which arm is whose baseline is in the specs of both. Points only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cprbench.blueprint.concentration import POOR_FIT
from cprbench.blueprint.drift import spearman
from cprbench.judge.cpr import Comparison, Group
from cprbench.judge.groups import (
    NOT_MEASURED,
    Figure,
    Told,
    ended_well,
    k_of,
    mean,
    q_of,
    runs_by_arm,
)
from cprbench.spec import Choice, ExternalSpec, RunRecord, RunSpec

Equal = Literal["q", "flops"]
#: What the baselines of a row have in common with it, in words.
EQUAL: dict[Equal, str] = {"q": "equal q", "flops": "equal billed FLOPs"}
#: eq. 34 on T and on its square, eq. 35.
PREDICTIONS = ("eq34_t", "eq34_t_squared", "eq35")
#: Resources whose share of full's a row shows: billed FLOPs and billed seconds.
COSTS = ("flops", "seconds")
#: A baseline off by more than this share is not equal: it is shown, and not counted.
TOLERANCE = 0.05
#: Fewer rows show no agreement.
LEAST_ROWS = 3
#: Methods whose k-set holds the most influential submodules, as eq. 35 asks.
BY_INFLUENCE = ("full", "partial")
#: Selections that keep the most influential examples, as eq. 35 asks.
BY_J = ("influence", "predicted", "iterative", "cross")
#: A band of percentiles of the score, as selections write it: "20..80".
_BAND = re.compile(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Baseline:
    """The random runs of a row: their retained gain, and what should be equal as a multiple of the row's."""

    kept: Figure
    ratio: Figure

    @property
    def equal(self) -> bool:
        """Whether the random runs have what the row has, within TOLERANCE."""
        return self.ratio.value is not None and abs(self.ratio.value - 1) <= TOLERANCE


@dataclass(frozen=True)
class Row:
    """One cell of the sweep, over its blocks. All figures are shares."""

    arm: str
    k: Figure  # of N, as reached
    q: Figure  # of the training examples, as reached
    k_times_q: Figure  # the paper's cost (4.4)
    kept: Figure  # of full's gain, as measured
    random: dict[str, Baseline]  # by EQUAL
    predicted: dict[str, Figure]  # of full's gain, by PREDICTIONS
    cost: dict[str, Figure]  # of full's, by COSTS: mean over the row's blocks / mean of full over the same
    classes_dropped: tuple[str, ...]  # labels of which the selection left no example in some block


@dataclass(frozen=True)
class Agreement:
    """How a prediction fits what was measured, over the rows that have both; the reference is none of them."""

    rows: int
    spearman: Figure
    mean_difference: Figure  # mean of |predicted - measured|, both shares of full's gain


@dataclass(frozen=True)
class Retention:
    """The table of a group, in the order of its arms."""

    rows: tuple[Row, ...]
    agreement: dict[str, Agreement]  # by PREDICTIONS


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _SelectionNote(_Note):
    q_reached: Annotated[float, Field(gt=0, le=1)]
    classes_dropped: list[str] = []


_Sums = dict[str, Annotated[float, Field(ge=0)]]
_Exponent = Annotated[float, Field(ge=0)] | None


class _InfluenceNote(_Note):
    """T over the pool, summed over examples by submodule, with the exponents fitted to it."""

    examples: int
    sums: _Sums
    squares: _Sums
    selected_sums: _Sums
    selected_squares: _Sums
    gamma: _Exponent = None
    gamma_r_squared: float | None = None
    delta: _Exponent = None
    delta_r_squared: float | None = None


_AnyNote = TypeVar("_AnyNote", bound=_Note)
_Runs = Mapping[int, RunRecord]  # block -> run
_Spec = RunSpec | ExternalSpec


def retention(group: Group) -> Retention | None:
    """Return the retention table of a group.

    There is one as soon as a run selects its data or is a baseline, or two arms train k-sets; else None. Method head
    and the baselines of other arms are no rows; full on all data is one, the reference.
    """
    # What ends at a budget or by a stop rule is no cell of a sweep over k and q.
    records = [r for r in group.records if r.spec.budget is None and r.spec.stop is None]
    arms = runs_by_arm(records)
    called = {name: next(iter(runs.values())).arm for name, runs in arms.items()}  # a repeat has a name of its own
    served = _baselines({name: next(iter(arms[name].values())).spec for name in arms if called[name] == name})
    baselines = {name for names in served.values() for name in names}
    k_sets = [name for name, runs in arms.items() if any(r.k_reached is not None for r in runs.values())]
    selects = any(r.spec.selection.name not in ("all", "external") for r in records)
    if not (baselines or selects or len(k_sets) > 1):
        return None
    ok = {name: ended_well(runs) for name, runs in arms.items()}
    table = _Table(
        of=Comparison(group.metric, ok.get("head", {}) if group.reference == "head" else None, ok.get("full", {})),
        baselines={row: [ok[name] for name in names] for row, names in served.items()},
        influences=_influences(group.records),
    )
    rows = tuple(
        table.row(arm.arm, ok[arm.arm], arm.retained_gain)
        for arm in group.arms
        if arm.arm in ok and arm.method != "head" and called[arm.arm] not in baselines
    )
    return Retention(rows, {name: _agreement(rows, name) for name in PREDICTIONS})


@dataclass(frozen=True)
class _Table:
    """What the rows of a group share."""

    of: Comparison
    baselines: Mapping[tuple[str, Equal], Sequence[_Runs]]  # (arm, equal) -> the arms that are its baseline
    influences: Mapping[int, _InfluenceNote]  # block -> T as some run measured it

    def row(self, arm: str, runs: _Runs, kept: Told) -> Row:
        """Return an arm's row; `runs` are those that ended well."""
        untold = "not told" if runs else "no run ended well"
        k = mean([k_of(r) for r in runs.values()], untold)
        q = mean([q_of(r) for r in runs.values()], untold)
        product = Figure(k.value * q.value) if k.value is not None and q.value is not None else Figure.none(untold)
        return Row(
            arm=arm,
            k=k,
            q=q,
            k_times_q=product,
            kept=Figure.of(kept),
            random={equal: self._random(arm, runs, equal) for equal in EQUAL},
            predicted={name: self._predicted(runs, name) for name in PREDICTIONS},
            cost={name: _share(runs, self.of.full, name) for name in COSTS},
            classes_dropped=tuple(sorted({label for r in runs.values() for label in _dropped(r)})),
        )

    def _random(self, arm: str, runs: _Runs, equal: Equal) -> Baseline:
        """Return the baseline over the very blocks of the row: a mean over others would be another row's."""
        known = self.baselines.get((arm, equal), ())
        if not runs:
            return _no_baseline("no run ended well")
        if equal == "q" and not known and all(q_of(r) == 1 for r in runs.values()):
            return _no_baseline("no draw: it trains on all data")
        drawn = {}
        for block in runs:
            claims = [random[block] for random in known if block in random]
            if not claims:
                where = f" in block {block}" if any(known) else ""
                return _no_baseline(f"no random run at {EQUAL[equal]} ended well{where}")
            if len(claims) > 1:
                return _no_baseline(f"n/e: more than one random run at {EQUAL[equal]} in block {block}")
            drawn[block] = claims[0]
        kept = Figure.of(self.of.retained(drawn))
        of_submodules = all(r.spec.selection.name == "all" for r in drawn.values())
        return Baseline(kept, _share(drawn, runs, "k" if of_submodules else equal))

    def _predicted(self, runs: _Runs, name: str) -> Figure:
        """Return the mean of a prediction over blocks, or the reason of the first block that has none."""
        found = [_predict(record, self.influences.get(block), name) for block, record in runs.items()]
        whys = [figure.why for figure in found if figure.value is None]
        return mean([figure.value for figure in found], (whys[0] if whys else None) or "no run ended well")


def _no_baseline(why: str) -> Baseline:
    return Baseline(Figure.none(why), Figure.none(why))


def _note(record: RunRecord, key: str, kind: type[_AnyNote]) -> _AnyNote | None:
    """Return a note of a record, None where it is not there or says something else: notes are free tables."""
    try:
        return kind.model_validate(record.notes.get(key))
    except ValidationError:
        return None


def _baselines(arms: Mapping[str, _Spec]) -> dict[tuple[str, Equal], list[str]]:
    """Return (arm, equal) -> the arms that are its baseline at that, by label; `arms`: label -> spec of any run."""
    found: dict[tuple[str, Equal], list[str]] = defaultdict(list)
    for name in sorted(arms):
        for served in _served(name, arms):
            found[served].append(name)
    for served, names in found.items():  # with the head warmed as the row warmed it, where there is such a one
        found[served] = [name for name in names if arms[name].selection.settings.get("warm")] or names
    return dict(found)


def _served(name: str, arms: Mapping[str, _Spec]) -> Iterator[tuple[str, Equal]]:
    """Yield the arms that this one is a baseline of, and at what; none where it stands for itself."""
    own = arms[name]
    if own.selection.name == "random" and (billed := own.selection.settings.get("flops_of")):
        stem = name.partition(" selection=")[0]
        named = [row for row in (f"{stem} selection={billed}", str(billed)) if row in arms]
        yield from ((row, "flops") for row in named[:1])
    elif own.selection.name == "random" and not own.selection.settings.get("flops"):
        yield from ((row, "q") for row, spec in arms.items() if _as_much_data(own, spec))
    elif own.selection.name == "all" and own.method.name == "random-submodules":
        yield from ((row, "q") for row, spec in arms.items() if _as_many_submodules(own, spec))


def _as_much_data(random: _Spec, spec: _Spec) -> bool:
    """Return whether this arm chooses the share of the data that the other draws by lot, and is else the same."""
    if spec.selection.name in ("all", "random", "external") or spec.method != random.method:
        return False
    guards = [bool(choice.settings.get("class_guard")) for choice in (random.selection, spec.selection)]
    drawn, wanted = _wanted_q(random.selection), _wanted_q(spec.selection)
    return guards[0] == guards[1] and drawn is not None and wanted is not None and abs(drawn - wanted) <= 1e-9


def _as_many_submodules(random: _Spec, spec: _Spec) -> bool:
    """Return whether this arm chooses the share of the submodules that the other draws by lot, both on all data."""
    if spec.method.name != "partial" or spec.selection.name != "all":
        return False
    (k, embed), wanted = ((s.method.settings.get("k"), bool(s.method.settings.get("embed"))) for s in (random, spec))
    return k is not None and (k, embed) == wanted


def _wanted_q(selection: Choice) -> float | None:
    """Return the share of the data that a selection was asked for: its q, or where it has one its band's width."""
    q, band = selection.settings.get("q"), selection.settings.get("band")
    if band:
        match = _BAND.fullmatch(str(band))
        return (float(match[2]) - float(match[1])) / 100 if match else None
    return float(q) if isinstance(q, int | float) else None


def _influences(records: Sequence[RunRecord]) -> dict[int, _InfluenceNote]:
    """Return block -> T over all data, of several that over the most examples; `records` have an order of their own."""
    noted = [(r.block, _note(r, "cross_influence", _InfluenceNote)) for r in records if r.status == "ok"]
    measured = [(block, note) for block, note in noted if note is not None]
    return dict(sorted(measured, key=lambda pair: pair[1].examples))


def _dropped(record: RunRecord) -> list[str]:
    note = _note(record, "selection", _SelectionNote)
    return [] if note is None else note.classes_dropped


def _value(record: RunRecord, name: str) -> float | None:
    shares = {"k": k_of(record), "q": q_of(record)}
    return (shares | {"flops": record.gamma.flops, "seconds": record.seconds.get("billed")})[name]


def _share(runs: _Runs, of: _Runs, name: str) -> Figure:
    """Return the mean of `name` over the runs / its mean over those of the same blocks in `of`."""
    if not runs:
        return Figure.none("no run ended well")
    if any(block not in of for block in runs):
        return Figure.none("no full run in every block")
    own = mean([_value(record, name) for record in runs.values()], NOT_MEASURED)
    reference = mean([_value(of[block], name) for block in runs], NOT_MEASURED)
    if own.value is None or reference.value is None:
        return Figure.none(NOT_MEASURED)
    return Figure(own.value / reference.value) if reference.value else Figure.none("n/e: cost_is_zero")


def _predict(record: RunRecord, of_block: _InfluenceNote | None, name: str) -> Figure:
    """Return a predicted retained gain of a run; `of_block` is T as some run of its block measured it."""
    if record.notes.keys() & {"adapters", "adapter_config"} or "lora" in record.spec.method.name:
        return Figure.none("no prediction for adapters: eq. 34 and 35 are of the model's own parameters")
    if record.notes.get("tensors") and record.notes.get("partly_trained") != []:
        return Figure.none("no prediction for parts of submodules: T is of whole ones")
    k, q = k_of(record), q_of(record)
    if k is None or q is None:
        return Figure.none("not told")
    own = _note(record, "cross_influence", _InfluenceNote)
    measured = own or of_block
    if name == "eq35":
        return _eq35(record, k, q, measured)
    if measured is None:
        return Figure.none("no run of this block measured T")
    if own is None and q != 1:
        return Figure.none("no T of what it selected: it chose without measuring T")
    return _eq34(record.trained_submodules, measured, squared=name == "eq34_t_squared", all_data=own is None)


def _eq34(trained: Sequence[str], t: _InfluenceNote, *, squared: bool, all_data: bool) -> Figure:
    """Return the sum of T over what trains and the examples used / its sum over everything (paper B.5, eq. 34).

    T is the L2 norm of a gradient per submodule and example, where the paper sums absolute scalars.
    """
    whole = t.squares if squared else t.sums
    part = whole if all_data else t.selected_squares if squared else t.selected_sums
    if lacking := [name for name in trained if name not in part or name not in whole]:
        return Figure.none(f"no T of {', '.join(lacking)}")
    if not (total := sum(whole.values())):
        return Figure.none("n/e: T is zero")
    share = sum(part[name] for name in trained) / total
    return Figure(share) if share <= 1 + 1e-9 else Figure.none("n/e: T contradicts itself")  # so does inf / inf


def _eq35(record: RunRecord, k: float, q: float, t: _InfluenceNote | None) -> Figure:
    """Return k^gamma * q^delta (paper B.5, eq. 35), of the most influential k and q; 1^x needs no fitted x."""
    if record.spec.method.name not in BY_INFLUENCE:
        return Figure.none("no eq. 35: its submodules are not the most influential ones")
    chosen = record.spec.selection
    if q != 1 and (chosen.name not in BY_J or chosen.settings.get("band")):
        return Figure.none("no eq. 35: its examples are not the most influential ones")
    value = 1.0
    for share, name in ((k, "gamma"), (q, "delta")):
        if share == 1:
            continue
        if t is None:
            return Figure.none("no run of this block measured T")
        exponent, r_squared = getattr(t, name), getattr(t, f"{name}_r_squared")
        if exponent is None or r_squared is None:
            return Figure.none(f"no fit of {name}")
        if r_squared < POOR_FIT:
            return Figure.none(f"no {name}: R² {r_squared:.2f} of its fit is below {POOR_FIT}")
        value *= share**exponent
    return Figure(value)


def _agreement(rows: Sequence[Row], name: str) -> Agreement:
    pairs = [(row.predicted[name].value, row.kept.value) for row in rows if row.arm != "full"]
    known = [(p, m) for p, m in pairs if p is not None and m is not None]
    if len(known) < LEAST_ROWS:
        few = Figure.none(f"fewer than {LEAST_ROWS} rows have both")
        return Agreement(len(known), few, few)
    ranks = spearman([p for p, _ in known], [m for _, m in known])
    correlation = Figure.none("no ranks: all are equal") if ranks is None else Figure(ranks)
    return Agreement(len(known), correlation, Figure(sum(abs(p - m) for p, m in known) / len(known)))
