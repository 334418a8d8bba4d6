"""How a run went: every line of history.jsonl stands where passes and trace put it, and the last one ends the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from cprbench.adapt.stopping import StopRule
from cprbench.meters.carbon import JOULES_PER_KWH
from cprbench.meters.history import carries_tally, tallies
from cprbench.meters.trace import Trace, Window
from cprbench.runs.bills import last_bill
from cprbench.runs.store import HISTORY
from cprbench.spec import RunSpec, better_by, billed_phases
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.choosing import paid_before
from cprbench.submissions.rules.costs import bill, cached
from cprbench.submissions.rules.evidence import (
    CURE,
    RECORD,
    ROUNDING,
    Step,
    cores_of,
    differences,
    first,
    history,
    on_gpu,
    told,
    trace,
)
from cprbench.submissions.rules.work import counted, walk

#: A line's seconds and its moment are taken one after the other: 0.1 ms apart in the runs of tests/records.
_BETWEEN_SECONDS = 0.1
#: What lies between the seconds of a validated step and the end of its window, where the device is waited for.
_CLOSING_SECONDS = 2.0
#: Windows that are gone through for all running gammas together.
_MOST_TALLIES = 10**6


def _lines(run: Dossier) -> Iterator[Flaw]:
    if run.spec is None:
        return
    steps = history(run)
    if isinstance(steps, str):
        yield Flaw(HISTORY, steps)
        return
    taken, ok = walk(run).steps, run.record.status == "ok"
    if [step.step for step in steps] != list(range(1, len(steps) + 1)):
        yield Flaw(HISTORY, "steps are not counted from 1 without a gap")
    # A run that was ended from outside may have computed a step that it did not write down.
    if len(steps) > len(taken) or (ok and len(steps) != len(taken)):
        yield Flaw(HISTORY, f"it has {len(steps)} steps, work.jsonl those of {len(taken)}")
        return
    again, known = _again(run, "flops"), counted(run) is not None and not paid_before(run)
    for step, own in zip(steps, taken, strict=False):
        if step.phase != own.phase or (ok and (step.validation is None) == bool(own.validation)):
            yield Flaw(HISTORY, f"step {step.step}: phase {step.phase}, validated: {step.validation is not None}")
            return
        spent = own.validated if step.validation is not None else own.spent
        if known and step.flops - spent not in again:
            yield Flaw(HISTORY, f"step {step.step}: flops is {step.flops}, its passes make {spent}")
            return
        again = again[again.index(step.flops - spent) :] if known else again[:1]
    if ok and steps and len(again) > 1:
        yield Flaw(HISTORY, f"its last step has not billed {again[-1]} FLOPs of cached scores")


def _again(run: Dossier, quantity: str) -> list[Any]:
    """Return what was billed of scores that were taken over: before the first of them, after it, after the second."""
    own = [r.value or 0 for r in cached(run) if (r.phase, r.quantity) == ("select", quantity)]
    return list(accumulate(own, initial=0))


# --- time -------------------------------------------------------------------------------------------


def _timed(run: Dossier) -> Iterator[Flaw]:
    steps, found, spec = history(run), trace(run), run.spec
    if isinstance(steps, str) or isinstance(found, str) or spec is None or paid_before(run):
        return
    phases = billed_phases(spec.stop)
    clock = _Clock([w for w in found.windows() if w.phase in phases], _again(run, "seconds"))
    before, moments = 0.0, []
    for step in steps:
        at = clock.moment(step, "validate" in phases)
        if at is None and run.record.status != "ok" and step.seconds >= clock.seconds:
            break  # written by a child whose parent had stopped to look
        if at is None or step.seconds < before:
            yield Flaw(HISTORY, f"step {step.step}: {step.seconds} s after {before} s are no moment of {step.phase}")
            return
        before = step.seconds
        if carries_tally(step.step, len(steps), {"validation": 0} if step.validation is not None else {}):
            moments.append((step, at))
        if (step.gamma is not None) != bool(moments and moments[-1][0] is step) and run.record.status == "ok":
            yield Flaw(HISTORY, f"step {step.step}: a running gamma stands at validations and every so many steps")
            return
    if len(moments) * len(found.windows()) > _MOST_TALLIES:
        yield Flaw(HISTORY, "more validations than running gammas are checked of", "unverified", "Validate less often")
        return
    yield from (Flaw(HISTORY, why) for why in _running(run, found, moments))


class _Clock:
    """Billed seconds as moments of a trace. `again`: seconds that were billed for cached scores, as they come."""

    def __init__(self, windows: Sequence[Window], again: Sequence[float]) -> None:
        self._windows, self._again, self._place = windows, again, 0
        self._before = list(accumulate((window.seconds for window in windows), initial=0.0))
        self.seconds = self._before[-1]

    def moment(self, step: Step, validates: bool) -> float | None:
        """Return when a line was written; None where no window of its phase has that moment, or it is not its place.

        `validates`: whether validations are billed. A validated step ends its window, or that of its validation.
        """
        validated = step.validation is not None
        phase = "validate" if validated and validates else step.phase
        for extra in self._again if step.phase == "select" else self._again[-1:]:
            for place in range(self._place, len(self._windows)):
                window, left = self._windows[place], step.seconds - extra - self._before[place]
                if left < -_BETWEEN_SECONDS:
                    break
                if left <= window.seconds + _BETWEEN_SECONDS and window.phase == phase:
                    if validated and window.seconds - left > _CLOSING_SECONDS:
                        break
                    self._place = place + (validated and not validates)
                    return min(window.end.t, window.start.t + max(0.0, left))
        return None


def _running(run: Dossier, found: Trace, moments: Sequence[tuple[Step, float]]) -> Iterator[str]:
    """Yield running gammas that are not those of their moment."""
    spec, cores = run.spec, cores_of(run) or 1
    assert spec is not None
    phases = billed_phases(spec.stop)
    made = [
        tallies(found, [(at + shift, step.seconds, step.flops) for step, at in moments], phases, cores=cores)
        for shift in (-_BETWEEN_SECONDS, _BETWEEN_SECONDS)
    ]
    for (step, _), early, late in zip(moments, *made, strict=True):
        if step.gamma is None:
            continue
        for name, said in vars(step.gamma).items():
            low, high = early[name], late[name]
            if cores_of(run) is None and name == "core_hours":
                continue
            if name == "flops" or said is None:
                inside = said in (low, high)
            else:  # a moment beside it may be one at which no meter tells
                inside = (low is None or low * (1 - ROUNDING) <= said) and (
                    high is None or said <= high * (1 + ROUNDING)
                )
                inside = inside and (low, high) != (None, None)
            if not inside:
                yield f"step {step.step}: gamma.{name} is {said}, its moment makes {low} to {high}"
                return


# --- validation and the end -------------------------------------------------------------------------


def _validated(run: Dossier) -> Iterator[Flaw]:
    spec, steps, record = run.spec, history(run), run.record
    if spec is None or isinstance(steps, str) or record.status != "ok":
        return
    validated = [step for step in steps if step.validation is not None]
    last = validated[-1].validation if validated else None
    if record.psi.validation != last:
        yield Flaw(RECORD, f"psi.validation is {record.psi.validation}, the last one was {last}")
    metrics = None if run.task is None else set(run.task.metrics)
    items = spec.training.validation_items
    if not isinstance(run.dataset, str):
        items = min(items, len(run.dataset.validation))
        if not items and validated:
            yield Flaw(HISTORY, "it validates, and its task has no validation split")
    for step in validated:
        scores = step.validation or {}
        if metrics is not None and set(scores) != metrics:
            yield Flaw(HISTORY, f"step {step.step}: validation has {sorted(scores)}, its task {sorted(metrics)}")
        if why := first(impossible_scores(scores, None if isinstance(run.dataset, str) else items)):
            yield Flaw(HISTORY, f"step {step.step}: {why}")
    total, grid, chosen = len(steps), spec.training.validations, sum(step.phase == "select" for step in steps)
    if spec.stop is not None and type(planned := told(run, "notes", "stop", "of_steps")) is int and planned > 0:
        total = planned
    if (spec.budget is None or spec.budget.resource == "flops") and (validated or items):
        # What a budget pays for is known once the choice is made, and a stop rule is not asked before.
        late = spec.budget is not None or spec.stop is not None or told(run, "notes", "selection", "flops_asked")
        numbers = range(chosen + 1 if late else 1, len(steps) + 1)
        asked = [n for n in numbers if n == total or n * grid // total > (n - 1) * grid // total]
        if (said := [step.step for step in validated]) != asked:
            yield Flaw(HISTORY, f"validated at steps {said}, the grid is {asked}")


def impossible_scores(scores: Mapping[str, float], items: int | None) -> Iterator[str]:
    """Yield scores that so many items cannot have."""
    for name, value in scores.items():
        if name in ("accuracy", "macro_f1") and not 0 <= value <= 1:
            yield f"{name} is {value}, outside [0, 1]"
        elif name == "accuracy" and items and abs(value * items - round(value * items)) > 1e-6:
            yield f"accuracy {value} is no whole number of {items} items"
        elif value < 0:
            yield f"{name} is {value}, below 0"


def _ended(run: Dossier) -> Iterator[Flaw]:
    spec, steps, record, made = run.spec, history(run), run.record, bill(run)
    if spec is None or isinstance(steps, str) or record.status != "ok" or made is None or not steps:
        return
    yield from _followed(run, spec)
    if spec.stop is not None:
        yield from _stopped(run, spec, steps)
    asked: Any = spec.selection.settings.get("flops")
    limit = spec.budget.amount if spec.budget is not None and spec.budget.resource == "flops" else asked
    spent, taken = steps[-1].flops, walk(run).steps
    if limit and len(taken) > 1:
        costs = [b.spent - a.validated for a, b in pairwise(taken) if b.phase == "train"]
        if spent > limit or limit - spent > 2 * max(costs, default=limit):
            yield Flaw(RECORD, f"it billed {spent} FLOPs of {limit:.0f}: a budget ends at the last step that fits")
    if asked and told(run, "notes", "selection", "flops_asked") != asked:
        yield Flaw(RECORD, f"notes.selection.flops_asked is not {asked}")
    if (budget := spec.budget) is not None:
        said, bills = told(run, "notes", "budget") or {}, last_bill(record, budget.resource)
        again = spent if budget.resource == "flops" else bills
        # Hours and joules are summed up from other roundings than the trace's; a joule is cut from samples there.
        close = {"flops": 0.0, "device_hours": 1e-3, "energy_kwh": 0.1}[budget.resource]
        same = again is None or math.isclose(said.get("spent", -1), again, rel_tol=close)
        if said.get("resource") != budget.resource or not same:
            yield Flaw(RECORD, f"notes.budget is {said}, it spent {again} {budget.resource}")


def _followed(run: Dossier, spec: RunSpec) -> Iterator[Flaw]:
    """A bill that another arm of the block made is that arm's."""
    budget, settings = spec.budget, spec.selection.settings
    name = budget.of if budget is not None else settings.get("flops_of")
    if not name:
        return
    # Where only the data differ, the name is that of the selection.
    names = (name, f"{run.record.arm.partition(' selection=')[0]} selection={name}")
    leader = next((mate.record for mate in run.mates if mate.record.arm in names and mate.record.status == "ok"), None)
    if leader is None:
        yield Flaw(
            RECORD, f"the bill that it meets is that of {name}, which is not here", "unverified", "Pack that run"
        )
        return
    amount = last_bill(leader, "flops" if budget is None else budget.resource)
    said, share = (settings.get("flops"), 1.0) if budget is None else (budget.amount, budget.share or 1.0)
    if amount is None or not isinstance(said, int | float) or not math.isclose(said, share * amount, rel_tol=1e-9):
        yield Flaw(RECORD, f"it was to bill {share:g} x {name}, which is {amount}, and it was given {said}")


def _stopped(run: Dossier, spec: RunSpec, steps: Sequence[Step]) -> Iterator[Flaw]:
    """A stop rule says the same of the same numbers again."""
    assert spec.stop is not None
    said = told(run, "notes", "stop") or {}
    rule = StopRule(**spec.stop.model_dump())
    held = (told(run, "facts", "gpu", "allotted") if on_gpu(run) else 1) or 1
    primary, ended = run.record.psi.primary, False
    for step in steps:
        if step.phase != "train" or step.validation is None or ended:
            continue
        joules = None if step.gamma is None else step.gamma.gpu_energy_joules or step.gamma.cpu_energy_joules
        hours, kwh = step.seconds / 3600 * held, (joules or 0.0) / JOULES_PER_KWH
        gamma = {"flops": step.flops, "device_hours": hours, "energy_kwh": kwh}[spec.stop.resource]
        ended = rule.add(better_by(primary, step.validation[primary], 0.0), gamma)
    found = {**rule.told(), "step": len(steps), "of_steps": said.get("of_steps")}
    if spec.stop.resource == "energy_kwh":  # asked of the counter, whose running value the history rounds to its moment
        found |= {key: said.get(key) for key in ("ratio", "largest", "threshold")}
    if why := first(differences(said, found)):
        yield Flaw(RECORD, f"notes.stop: {why}")
    full = spec.training.epochs * -(-(run.record.selected_examples or 0) // spec.training.batch_size)
    if said.get("of_steps") != full or (rule.stopped_at is None and len(steps) != full):
        yield Flaw(RECORD, f"it ended after {len(steps)} of {full} steps, and its rule says: {rule.why}")


RULES: tuple[Rule, ...] = (
    Rule("H1", "every step stands where its passes put it", CURE, _lines),
    Rule("H2", "every step stands where the trace puts it", CURE, _timed),
    Rule("H3", "validations are on the grid, and the last one is psi's", CURE, _validated),
    Rule("H4", "it ended where its budget or its rule ends it", CURE, _ended),
)
