"""What a run was asked to do, and the passes that this takes: none more, none fewer, none shorter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cprbench.adapt.methods import build_method
from cprbench.adapt.selection import build_selection
from cprbench.adapt.selection.predicted import LEAST_MEASURED
from cprbench.adapt.settings import PIN
from cprbench.meters.flops import Pass, plan_of
from cprbench.runs.store import PREDICTIONS, SAMPLES
from cprbench.spec import RunSpec
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.costs import cached, paid_before
from cprbench.submissions.rules.evidence import CURE, RECORD, WORK, differences, first, told, trace
from cprbench.submissions.rules.trained import Set, labels_of, set_of
from cprbench.submissions.rules.work import Taken, walk

Shape = tuple[int, int, int, int | None, int]


def _shape(p: Pass) -> Shape:
    return p.batch, p.length, p.tokens, p.squared, p.scored


def _unpinned(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.endswith(PIN)}


def pool_of(run: Dossier) -> int | None:
    """Return how many examples there were to choose from; None where neither its data nor its notes tell."""
    assert run.spec is not None
    if isinstance(run.dataset, str):
        found = told(run, "notes", "selection", "pool")
        found = run.record.selected_examples if run.spec.selection.name == "all" else found
        return found if type(found) is int else None
    most = run.spec.training.max_examples
    return len(run.dataset.train) if most is None else min(most, len(run.dataset.train))


# --- scoring and validating -------------------------------------------------------------------------


def _scored(run: Dossier) -> Iterator[Flaw]:
    spec, found = run.spec, walk(run)
    if spec is None or run.record.status != "ok":
        return
    size, one = spec.training.score_batch_size, told(run, "notes", "processes") is None
    blocks = {"base": found.base, "final": found.final}
    if run.record.role == "search":
        if found.base or found.final:
            yield Flaw(WORK, "a trial scores no test items")
    else:
        choices = _choices(run)
        for name, block in blocks.items():
            if why := first(_block(spec, block, run.record.psi.items, choices, size, one)):
                yield Flaw(WORK, f"psi.{name}: {why}")
        if [*map(_shape, found.base)] != [*map(_shape, found.final)]:
            yield Flaw(WORK, "the test items before adaptation have other shapes than those after it")
    validations = [[_shape(p) for p in step.validation] for step in found.steps if step.validation]
    if any(shapes != validations[0] for shapes in validations):
        yield Flaw(WORK, "validations have different shapes, and are of the same items")
    elif validations:
        items = spec.training.validation_items
        if not isinstance(run.dataset, str):
            items = min(items, len(run.dataset.validation))
        step = next(step for step in found.steps if step.validation)
        told_items = items if spec.model.kind == "encoder" else None
        if why := first(_block(spec, step.validation, items, told_items, size, one)):
            yield Flaw(WORK, f"validation: {why}")


def _choices(run: Dossier) -> int | None:
    """Return how many log-likelihoods psi is made of: one sequence each, where an answer takes several tokens."""
    rows = [row.get("scores") for row in run.rows(PREDICTIONS)]
    return sum(len(own.get("log_likelihoods") or "1") for own in rows if isinstance(own, dict))


def _block(
    spec: RunSpec, block: Sequence[Pass], items: int, choices: int | None, size: int, one: bool
) -> Iterator[str]:
    """Yield what is wrong with the passes that score `items`, by length, in batches of `size`."""
    sequences, wanted = sum(p.batch for p in block), -(-items // size)
    several = spec.model.kind == "causal" and (sequences == choices or choices is None) and sequences >= items
    if sequences != items and not several:
        yield f"{sequences} sequences are scored, and there are {items} items"
    if len(block) != wanted:
        yield f"{len(block)} passes of up to {size} items, and {items} items take {wanted}"
    longest = 0
    for p in block if one and sequences == items else ():
        if p.batch != size and p is not block[-1]:
            yield f"a batch of {p.batch} items, and not the last one"
        if p.length < longest or p.tokens < longest * (p.batch - 1) + p.length:
            yield f"a batch of {p.tokens} tokens in {p.batch} items after one of length {longest}"
        longest = p.length
    if any(p.backward or p.first_layer or p.last_layer is not None or p.recompute for p in block):
        yield "scoring goes forward through all layers"


# --- training ---------------------------------------------------------------------------------------


def _trains(run: Dossier) -> Iterator[Flaw]:
    spec, record, steps = run.spec, run.record, walk(run).steps
    if spec is None or record.status != "ok":
        return
    selection: Any = build_selection(spec.selection.name, _unpinned(spec.selection.settings))
    method: Any = build_method(spec.method.name, _unpinned(spec.method.settings))
    pool, kept = pool_of(run), record.selected_examples or 0
    fixed = not getattr(selection, "flops_of", "") and not getattr(selection, "flops", 0)
    if pool is not None and (wanted := selection.kept(pool)) not in (None, kept):
        yield Flaw(RECORD, f"selected_examples is {kept}, {spec.selection.name} keeps {wanted} of {pool}")
    if pool and spec.selection.name != "all":
        asked = None if getattr(selection, "band", "") or not fixed else selection.q
        notes = {"pool": pool, "q_asked": asked, "q_reached": kept / pool}
        if why := first(differences({name: told(run, "notes", "selection", name) for name in notes}, notes)):
            yield Flaw(RECORD, f"notes.selection: {why}")
    chosen = [step for step in steps if step.phase == "select"]
    warm = spec.training.select_warmup_steps if _warms(spec, method, selection) else 0
    rounds = getattr(selection, "trains", 0)
    trains = Counter(p.trains for step in chosen for p in step.mains)
    processes = told(run, "notes", "processes") or 1
    if any(not step.mains for step in steps):
        yield Flaw(WORK, "a step has no backward pass")
    if trains != Counter({"head": warm * processes, "method": rounds * processes}):
        yield Flaw(WORK, f"choosing takes {warm} steps of the head and {rounds} of the method; it took {dict(trains)}")
    if steps[: len(chosen)] != chosen or any(p.trains != "method" for s in steps[len(chosen) :] for p in s.mains):
        yield Flaw(WORK, "training is of what the method trains, after everything was chosen")
    epoch = -(-kept // spec.training.batch_size)
    total = spec.training.epochs * epoch
    if spec.budget is None and fixed and (len(steps) > total or (spec.stop is None and len(steps) < total)):
        yield Flaw(WORK, f"it took {len(steps)} steps, {spec.training.epochs} epochs of {kept} examples are {total}")
    if processes == 1 and epoch and all(step.mains for step in steps):
        # Until the choice was made, batches were of all examples.
        begin = 0 if kept == pool and not rounds else len(chosen)
        yield from (Flaw(WORK, why) for why in _epochs(run, steps, begin, kept, epoch))
    own_trace = trace(run)
    if not isinstance(own_trace, str):
        billed = any(window.phase == "select" for window in own_trace.windows())
        if billed != (method.chooses or selection.chooses):
            yield Flaw(SAMPLES, f"phase select took place: {billed}; its method or selection chooses: {not billed}")
    notes = {"steps": len(steps), "warmup_steps_of_head": len(chosen)}
    if why := first(differences({name: told(run, "notes", name) for name in notes}, notes)):
        yield Flaw(RECORD, f"notes: {why}")
    yield from (Flaw(WORK, why) for why in _measures(run, spec, method, selection, pool))


def _warms(spec: RunSpec, method: Any, selection: Any) -> bool:
    """Return whether a new head is warmed: norms at a random one say little."""
    measures = hasattr(method, "blueprint") and method.chooses and not (method.blueprint and method.blend_weight == 1)
    return spec.model.kind == "encoder" and bool(measures or selection.warms_head)


def _epochs(run: Dossier, steps: Sequence[Taken], begin: int, kept: int, epoch: int) -> Iterator[str]:
    """Yield what is wrong with batches: an epoch has every example once, in batches of one size but for one."""
    spec = run.spec
    assert spec is not None
    size, rest, whole = spec.training.batch_size, kept - (epoch - 1) * spec.training.batch_size, None
    covered = 0
    for start in range(0, len(steps), epoch):
        own = [step.mains[0] for step in steps[max(start, begin) : start + epoch]]
        odd = [p.batch for p in own if p.batch != size]
        full = len(own) == epoch
        if any(batch != rest for batch in odd) or len(odd) > 1 or (full and sum(p.batch for p in own) != kept):
            yield f"steps {start + 1} to {start + epoch}: batches of {odd or size} examples, an epoch has {kept}"
            return
        if full:
            sums = sum(p.tokens for p in own), sum(p.squared or 0 for p in own)
            if whole not in (None, sums):
                yield f"steps {start + 1} to {start + epoch}: {sums[0]} tokens, an epoch before had {whole[0]}"
                return
            whole, covered = sums, kept
    seen = told(run, "notes", "examples_trained_on")
    most = min(
        pool_of(run) or kept, kept + sum(p.batch for step in steps for p in step.mains if step.phase == "select")
    )
    if type(seen) is not int or not covered <= seen <= most:
        yield f"notes.examples_trained_on is {seen}, of {covered} to {most}"
    yield from _kept_states(run, steps, whole, kept)


def _kept_states(run: Dossier, steps: Sequence[Taken], whole: tuple[int, int] | None, kept: int) -> Iterator[str]:
    """Yield what is wrong with states of frozen layers: computed once for every example, and read again."""
    spec, cache, found = run.spec, told(run, "notes", "prefix_cache") or {}, set_of(run)
    assert spec is not None
    below, again = 0 if cache.get("mode") == "off" else cache.get("first_layer", 0), None
    if isinstance(found, Set):
        plan = plan_of(spec.model.config, spec.model.kind, labels_of(run))
        trains = _first_layer(found, plan.layers)
        if (why := first(differences(cache, _cache(spec, cache, trains, told(run, "notes", "precision"), plan)))) != "":
            yield f"notes.prefix_cache: {why}"
        again = trains if spec.training.gradient_checkpointing and trains < plan.layers else None
    fresh = [0, 0, 0]
    for number, step in enumerate(steps, start=1):
        main, new, training = step.mains[0], step.fresh[0] if step.fresh else None, step.phase == "train"
        resumed = new is None or (new.last_layer == below and below > 0 and training and len(step.fresh) == 1)
        if main.first_layer != below * training or not resumed:
            yield f"step {number} does not begin at layer {below * training}"
            return
        if any(_shape(p) != _shape(main) for p in step.again) or (
            training and isinstance(found, Set) and [p.first_layer for p in step.again] != [again] * (again is not None)
        ):
            yield f"step {number}: checkpointing repeats its batch from layer {again}"
            return
        if new is not None:
            if (
                new.batch > main.batch
                or new.length > main.length
                or (new.batch == main.batch) > (_shape(new) == _shape(main))
            ):
                yield f"step {number}: frozen layers ran on {_shape(new)}, its batch is {_shape(main)}"
                return
            fresh = [a + b for a, b in zip(fresh, (new.batch, new.tokens, new.squared or 0), strict=True)]
    epoch = -(-kept // spec.training.batch_size)
    chosen = sum(step.phase == "select" for step in steps)
    expected = [kept, *whole] if whole and len(steps) - -(-chosen // epoch) * epoch >= epoch else fresh
    if below and spec.training.cache_prefix == "auto" and (fresh[0] > kept or fresh != expected):
        yield f"frozen layers ran on {fresh[0]} examples of {fresh[1]} tokens, each of {kept} goes through them once"


def _cache(spec: RunSpec, said: Mapping[str, Any], trains: int, precision: Any, plan: Any) -> dict[str, Any]:
    """Return what notes say of kept states; how much room there was, and so where they are kept, is theirs to say."""
    if spec.training.cache_prefix == "off":
        return {"mode": "off", "why": "training.cache_prefix = off"}
    if trains == 0:
        return {"mode": "off", "why": "the backward pass reaches the first layer"}
    if said.get("mode") == "off":
        why = str(said.get("why"))
        return {"mode": "off", "why": "another reason" if "reaches the first layer" in why else why}
    mode = said.get("mode") if said.get("mode") in ("memory", "disk") else "memory"
    width = plan.attn[-1].outputs * (2 if precision == "bf16" else 4)
    return {"mode": mode, "first_layer": trains, "bytes_per_token": width}


def _first_layer(found: Set, layers: int) -> int:
    """Return the first layer that the backward pass reaches (adapt.models.first_trained_layer)."""
    inside = [int(index) for cell in found.cells for kind, _, index in [cell.partition(".")] if index]
    return 0 if "embed" in found.cells else min(inside, default=layers)


# --- choosing ---------------------------------------------------------------------------------------


def _measures(run: Dossier, spec: RunSpec, method: Any, selection: Any, pool: int | None) -> Iterator[str]:
    """Yield what is wrong with the examples whose norms, gradients or states were measured."""
    if pool is None:
        return
    recipe, name = spec.training, spec.selection.name
    wanted = {"norms": 0, "gradients": 0, "states": 0}
    if hasattr(method, "blueprint") and method.chooses and not (method.blueprint and method.blend_weight == 1):
        wanted["norms"] = min(pool, recipe.select_batches * recipe.select_batch_size)
    if name == "cross" or (name == "influence" and not selection.scores):
        wanted["gradients"] = pool
    elif name == "predicted":
        wanted["gradients"] = min(pool, max(LEAST_MEASURED, round(selection.measured * pool)))
        wanted["states"] = pool - wanted["gradients"] if selection.features == "forward" else 0
    elif name == "coreset" and selection.embedding == "forward":
        wanted["states"] = pool
    elif name == "iterative":
        shares = [
            max(1, round(pool * selection.q ** (n / selection.rounds)))
            for n in range(1, min(selection.rounds, len(walk(run).steps) + 1))
        ]
        wanted["gradients"] = sum([pool, *shares])
    found = dict.fromkeys(wanted, 0)
    timed = 0
    for p in walk(run).measures:
        kind = {"all": "norms", "activations": "gradients", "nothing": "states"}[p.trains]
        times = kind == "states" and spec.selection.name not in ("predicted", "coreset")
        timed += times
        found[kind] += 0 if times else p.batch
        if p.backward != (kind != "states") or p.batch > recipe.select_batch_size * (1 + times * recipe.batch_size):
            yield f"choosing measured {kind} of {p.batch} examples in one pass, backward: {p.backward}"
    taken = bool(cached(run)) or paid_before(run)
    asked = getattr(method, "pick", "") == "per-cost" or bool(getattr(method, "budget", ""))
    if timed % 4 or (timed and not asked):
        yield f"{timed} steps were timed to choose by"
    for kind, examples in wanted.items():
        if found[kind] != examples and not (taken and kind != "norms" and found[kind] < examples):
            yield f"choosing measures {kind} of {examples} examples, and it measured {found[kind]}"


# --- beside the other runs of the block -------------------------------------------------------------


def _alike(run: Dossier) -> Iterator[Flaw]:
    """Runs of one block score the same items, and train on the same batches as far as they chose the same examples."""
    record, own = run.record, walk(run)
    mates = [
        mate
        for mate in run.mates
        if mate.run_id < run.run_id and mate.record.status == record.status == "ok"
        if told(mate, "notes", "processes") == told(run, "notes", "processes")
    ]
    pairs: list[tuple[str, str, Sequence[Pass], Sequence[Pass]]] = []
    for mate in mates[:1]:
        pairs.append((mate.run_id, "psi", own.final, walk(mate).final))
        one, other = (next((s.validation for s in w.steps if s.validation), []) for w in (own, walk(mate)))
        pairs.append((mate.run_id, "validation", one, other))
    # Several processes deal examples out by who has kept which, and that differs.
    alone = [mate for mate in mates if told(mate, "notes", "processes") is None]
    for mate in [mate for mate in alone if mate.record.selection_sha256 == record.selection_sha256][:1]:
        both = [s for s in zip(own.steps, walk(mate).steps, strict=False) if s[0].phase == s[1].phase == "train"]
        pairs += [(mate.run_id, "training", a.mains, b.mains) for a, b in both]
    for name, what, mine, theirs in pairs:
        if mine and theirs and [*map(_shape, mine)] != [*map(_shape, theirs)]:
            yield Flaw(WORK, f"{what}: other shapes than those of run {name}, of the same block")
            return


RULES: tuple[Rule, ...] = (
    Rule("F5", "every item is scored, and the same ones every time", CURE, _scored),
    Rule("F6", "its steps are those of its recipe, and its choice measured what it says", CURE, _trains),
    Rule("F7", "runs of one block compute on the same shapes", CURE, _alike),
)
