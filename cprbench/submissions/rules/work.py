"""What a run computed: FLOPs counted again from the passes in work.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cprbench.adapt.gradients.pairs import direct_cost, pair_cost
from cprbench.errors import CprbenchError, SpecError
from cprbench.meters.flops import Flops, Pass, Trained, each, plan_of
from cprbench.spec import RunSpec, billed_phases
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.evidence import CURE, WORK, first, on_gpu, once, passes, told
from cprbench.submissions.rules.trained import Unknown, labels_of, model_of, set_of, trained, uncounted

#: What a record says where a child died before it could tell what its passes train.
_UNTOLD = "the child ended before it told what its passes train"
#: Ways in which the passes of a run go through its layers; every one of them is walked.
_MOST_KINDS = 50
#: Rows of an answer that are tried where no pass tells them.
_MOST_ROWS = 1000
_NOTHING = "the child ended before it computed anything"


@dataclass
class Taken:
    """One optimizer step: its passes, and the validation after it."""

    phase: str
    fresh: list[Pass] = field(default_factory=list)  # through frozen layers alone, whose states stay
    mains: list[Pass] = field(default_factory=list)  # one per process
    again: list[Pass] = field(default_factory=list)  # repeated by gradient checkpointing
    validation: list[Pass] = field(default_factory=list)
    spent: int = 0  # FLOPs billed up to the step, and up to its validation
    validated: int = 0


@dataclass
class Walk:
    """The passes of a run by what they were for, in order."""

    base: list[Pass] = field(default_factory=list)
    steps: list[Taken] = field(default_factory=list)
    measures: list[Pass] = field(default_factory=list)  # what choosing measured
    snapshots: list[Pass] = field(default_factory=list)
    final: list[Pass] = field(default_factory=list)


def basis(run: Dossier) -> Trained | None:
    """Return what its passes trained; None where that cannot be told."""
    assert run.spec is not None
    own = passes(run)
    try:
        model_of(run)  # refuses what no model has before its layers are walked
    except Unknown:
        return None
    if run.record.status != "ok" and not isinstance(own, str) and all(p.trains != "method" for p in own):
        return Trained(frozenset(), run.spec.model.kind == "encoder")
    found = set_of(run)
    return None if isinstance(found, Flaw) else trained(run, found)


@once
def flops_of(run: Dossier) -> list[Flops] | str | None:
    """Return the FLOPs of every pass, or why there is no count; None where they cannot be counted again here.

    Raises what `each` raises.
    """
    record, spec, own = run.record, run.spec, passes(run)
    said = next(
        (r.why_missing for r in record.readings if r.quantity == "flops" and r.attempt == record.attempts), None
    )
    if spec is None:
        return said or "the loop is not ours"
    if isinstance(own, str):
        return None
    if (why := uncounted(run)) is not None:
        return why
    if record.status != "ok" and (said == _UNTOLD or (said == _NOTHING and not own)):
        return said
    if (found := basis(run)) is None:
        return None
    kinds = {(p.trains, p.backward, p.first_layer, p.last_layer, p.recompute) for p in own}
    if len(kinds) > _MOST_KINDS:
        raise SpecError(f"passes of {len(kinds)} kinds, through other layers each: no run takes so many.")
    return list(each(spec.model.config, spec.model.kind, labels_of(run), found, own))


@once
def counted(run: Dossier) -> dict[tuple[str, int], Flops] | str | None:
    """Return the FLOPs by (phase, attempt) as `account` takes them, or what `flops_of` says in their place."""
    try:
        found = flops_of(run)
    except CprbenchError:
        return None
    if found is None or isinstance(found, str):
        return found
    totals: dict[tuple[str, int], Flops] = {}
    for p, own in zip(passes(run), found, strict=True):
        assert isinstance(p, Pass)
        totals[p.phase, p.attempt] = totals.get((p.phase, p.attempt), Flops()) + own
    return totals


@once
def walk(run: Dossier) -> Walk:
    """Return the passes of a run of ours by what they were for; without any where work.jsonl cannot be read."""
    found, own = Walk(), passes(run)
    if isinstance(own, str) or run.spec is None:
        return found
    try:
        flops = flops_of(run)
    except CprbenchError:
        flops = None
    costs = flops if isinstance(flops, list) else [Flops()] * len(own)
    processes = told(run, "notes", "processes")
    processes = processes if type(processes) is int else 1
    billed = billed_phases(run.spec.stop)
    spent = 0
    for p, cost in zip(own, costs, strict=True):
        spent += cost.total if p.phase in billed else 0
        stepped = found.steps[-1] if found.steps else None
        if p.phase == "score":
            (found.snapshots if p.trains == "all" else found.final if stepped else found.base).append(p)
        elif p.phase == "validate":
            if stepped is not None:
                stepped.validation.append(p)
                stepped.validated = spent
            else:
                found.measures.append(p)
        elif p.phase == "train" or p.trains in ("head", "method"):
            full = stepped is None or len(stepped.mains) == processes
            if (full and not p.recompute) or stepped is None:
                stepped = Taken(p.phase)
                found.steps.append(stepped)
            (stepped.again if p.recompute else stepped.mains if p.backward else stepped.fresh).append(p)
            stepped.spent = stepped.validated = spent
        else:
            found.measures.append(p)
    return found


def measured_flops(run: Dossier) -> list[Flops]:
    """Return the FLOPs of everything that choosing measured, in the calls by which scores are kept.

    A call goes through its examples by length, so the next one begins where the length falls.
    """
    own, flops = passes(run), counted(run) and flops_of(run)
    found: list[Flops] = []
    if isinstance(own, str) or not isinstance(flops, list):
        return found
    before: Pass | None = None
    for p, cost in zip(own, flops, strict=True):
        if p.phase != "select" or p.trains not in ("activations", "nothing"):
            continue
        if before is None or before.trains != p.trains or p.length < before.length:
            found.append(Flops())
        found[-1] += cost
        before = p
    return found


# --- the rules --------------------------------------------------------------------------------------


def _readable(run: Dossier) -> Iterator[Flaw]:
    if run.spec is None:
        return
    own = passes(run)
    if isinstance(own, str):
        yield Flaw(WORK, own)
        return
    kind, longest = run.spec.model.kind, run.spec.training.max_tokens
    why = first(f"line {i}: {w}" for i, p in enumerate(own, start=1) for w in _impossible(p, kind, longest))
    try:
        flops_of(run)
    except CprbenchError as error:
        why = why or f"its passes cannot have run: {error!s:.300}"
    if why:
        yield Flaw(WORK, why)


def _impossible(p: Pass, kind: str, longest: int) -> Iterator[str]:
    """Yield why no batch has these numbers: lengths n, the largest of them `length`, that sum up to `tokens`."""
    rest, others = p.tokens - p.length, p.batch - 1
    if p.length > longest:
        yield f"{p.length} tokens, the recipe cuts at {longest}"
    if p.squared is None or (p.squared - p.tokens) % 2:
        yield f"squared {p.squared} and tokens {p.tokens} are not of one parity"
    elif rest < others or p.squared < p.length**2 + (-(-(rest**2) // others) if others else 0):
        yield f"squared {p.squared}, tokens {p.tokens}, length {p.length} are of no {p.batch} sequences"
    if p.scored < p.batch or (kind == "encoder" and p.scored != p.batch):
        yield f"{p.scored} rows scored of {p.batch} sequences"


def _beside(run: Dossier) -> Iterator[Flaw]:
    """FLOPs beside the model's own: norms of examples, and adapters in passes that do not train them."""
    spec, own, found = run.spec, passes(run), None if run.spec is None else basis(run)
    if spec is None or isinstance(own, str) or found is None or not isinstance(counted(run), dict):
        return
    model, labels = spec.model, labels_of(run)
    plain = Trained(frozenset(), found.new_head)
    # What a method measures comes before its adapters are in.
    last = max((i for i, p in enumerate(own) if p.trains == "all" and p.phase == "select"), default=-1)
    adapted = bool(found.lora) and any(p.trains == "method" for p in own)
    forward = [replace(p, backward=False, trains="method", extra_flops=0) for p in own] if adapted else []
    both = [each(model.config, model.kind, labels, t, forward) for t in (found, plain)]
    adapters = [with_them.total - without.total for with_them, without in zip(*both, strict=True)] or [0] * len(own)
    seen: dict[tuple[Any, ...], bool] = {}
    for number, (p, once_through) in enumerate(zip(own, adapters, strict=True)):
        inside = number > last and (p.phase != "score" or p.trains == "all")
        own_extra = p.extra_flops - inside * once_through * {"method": 0, "activations": 2}.get(p.trains, 1)
        key = own_extra, p.phase, p.trains, p.batch, p.length, p.scored
        if key not in seen:
            seen[key] = own_extra in _norms_take(run, spec, p)
        if not seen[key]:
            yield Flaw(WORK, f"line {number + 1}: extra_flops is {p.extra_flops}, and that pass takes others")
            return


def _norms_take(run: Dossier, spec: RunSpec, p: Pass) -> range | list[int]:
    """Return what the norms of a pass's examples may take beside its products (adapt.gradients.engine)."""
    timed = spec.method.settings.get("pick") == "per-cost" or bool(spec.method.settings.get("budget"))
    if timed and p.trains == "nothing" and p.phase == "select":
        return range(10**30)  # steps that were timed: which sets took turns is not told
    if p.trains not in ("activations", "all") or (p.trains == "all" and p.phase == "select"):
        return [0]
    plan = plan_of(spec.model.config, spec.model.kind, labels_of(run))
    slow = 1 if told(run, "notes", "precision") == "fp32" else 8 if on_gpu(run) else 2

    def takes(length: int, inputs: int, outputs: int) -> int:
        pairs, direct = pair_cost(length, inputs, outputs), direct_cost(length, inputs, outputs)
        return 2 * p.batch * (pairs if pairs * slow <= direct else direct)

    inside = plan.layers * sum(takes(p.length, own.inputs, own.outputs) for own in (*plan.attn, *plan.ffn))
    rows = [linear for cell, linear in plan.rows if cell in model_of(run).sizes]
    # The rows of an answer are padded to the longest answer of the batch, which no pass tells.
    most = range(-(-p.scored // p.batch), min(p.length, p.scored - p.batch + 1) + 1)
    return [inside + sum(takes(n, own.inputs, own.outputs) for own in rows) for n in most[:_MOST_ROWS]]


RULES: tuple[Rule, ...] = (
    Rule("F3", "its passes are of sequences that there can be", CURE, _readable),
    Rule("F4", "FLOPs beside the model's own follow from the shapes", CURE, _beside),
)
