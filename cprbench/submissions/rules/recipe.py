"""What a run was asked to do, and the passes that this takes: none more, none fewer, none shorter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

from cprbench.adapt.data import Dataset
from cprbench.adapt.methods import build_method
from cprbench.adapt.selection import build_selection
from cprbench.meters.flops import Pass, plan_of
from cprbench.runs.store import PREDICTIONS, SAMPLES
from cprbench.spec import RunSpec
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.choosing import measures, pool_of, unpinned
from cprbench.submissions.rules.evidence import CURE, RECORD, WORK, differences, first, told, trace
from cprbench.submissions.rules.psi import _sample
from cprbench.submissions.rules.trained import Set, labels_of, set_of
from cprbench.submissions.rules.work import Taken, walk

Shape = tuple[int, int, int, int | None, int]


#: A word that no tokenizer leaves out: it has a letter or a digit.
_WORD = re.compile(r"[^\W_]\S*")
#: Tokens by which a prompt that is cut to max_tokens may fall short of it: what is cut is tokenized again.
_CUT = 8
_SPANS = "Nothing to do where its tokenizer has tokens that span words: it is shown and does not rank"


def _shape(p: Pass) -> Shape:
    return p.batch, p.length, p.tokens, p.squared, p.scored


def processes_of(run: Dossier) -> int:
    """Return how many processes trained together. What says otherwise than a count is told of by rule G2."""
    found = told(run, "notes", "processes")
    return found if type(found) is int else 1


def _joined(own: Sequence[Pass]) -> Pass:
    """Return what all processes computed in one step as one pass over its batch."""
    return replace(
        own[0],
        batch=sum(p.batch for p in own),
        length=max(p.length for p in own),
        tokens=sum(p.tokens for p in own),
        squared=sum(p.squared or 0 for p in own),
        scored=sum(p.scored for p in own),
    )


def _least_tokens(run: Dossier, split: Literal["train", "test"], examples: int) -> int:
    """Return tokens that so many examples of a split have at least, whichever they are: one per word that is kept."""
    spec = run.spec
    if spec is None or isinstance(run.dataset, str):
        return 0
    recipe = spec.training
    size = recipe.max_examples if split == "train" else recipe.eval_items
    words = _words(run.dataset, split, spec.task.name, size)
    longest = 0 if spec.model.kind == "encoder" else words[1] + 1  # bytes of a choice: no fewer than its tokens
    most = max(1, recipe.max_tokens - longest - _CUT)
    return sum(min(count, most) for count in words[0][:examples])


def _words(dataset: Dataset, split: Literal["train", "test"], task: str, size: int | None) -> tuple[list[int], int]:
    """Return the words of every prompt, fewest first, and the bytes of the longest choice."""
    key = (dataset.sha256, split, size)
    if key not in _COUNTS:
        while len(_COUNTS) >= _MOST_COUNTS:
            del _COUNTS[next(iter(_COUNTS))]
        examples = _sample(dataset, split, task, size)
        choices = {choice for example in examples for choice in example.choices}
        counts = sorted(len(_WORD.findall(example.prompt)) for example in examples)
        _COUNTS[key] = counts, max((len(choice.encode()) for choice in choices), default=0)
    return _COUNTS[key]


_COUNTS: dict[tuple[str, str, int | None], tuple[list[int], int]] = {}
_MOST_COUNTS = 32


# --- scoring and validating -------------------------------------------------------------------------


def _scored(run: Dossier) -> Iterator[Flaw]:
    spec, found = run.spec, walk(run)
    if spec is None or run.record.status != "ok":
        return
    size, one = spec.training.score_batch_size, processes_of(run) == 1
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
        tokens, least = sum(p.tokens for p in found.final), _least_tokens(run, "test", run.record.psi.items)
        if tokens < least:
            why = f"psi.final: {tokens} tokens are scored, and its items have {least} words and more"
            yield Flaw(WORK, why, "unverified", _SPANS)
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
    # Processes take turns, and each tells its own passes.
    in_order = block if one else sorted(block, key=lambda p: (p.length, p.batch != size, p.tokens))
    for p in in_order if sequences == items else ():
        if p.batch != size and p is not in_order[-1]:
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
    selection: Any = build_selection(spec.selection.name, unpinned(spec.selection.settings))
    method: Any = build_method(spec.method.name, unpinned(spec.method.settings))
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
    processes = processes_of(run)
    whole = all(len(step.mains) == processes for step in steps)
    if not whole:
        yield Flaw(WORK, "a step has no backward pass of every process")
    if trains != Counter({"head": warm * processes, "method": rounds * processes}):
        yield Flaw(WORK, f"choosing takes {warm} steps of the head and {rounds} of the method; it took {dict(trains)}")
    if steps[: len(chosen)] != chosen or any(p.trains != "method" for s in steps[len(chosen) :] for p in s.mains):
        yield Flaw(WORK, "training is of what the method trains, after everything was chosen")
    epoch = -(-kept // spec.training.batch_size)
    total = spec.training.epochs * epoch
    if spec.budget is None and fixed and (len(steps) > total or (spec.stop is None and len(steps) < total)):
        yield Flaw(WORK, f"it took {len(steps)} steps, {spec.training.epochs} epochs of {kept} examples are {total}")
    if epoch and whole:
        # Until the choice was made, batches were of all examples.
        begin = 0 if kept == pool and not rounds else len(chosen)
        yield from _epochs(run, steps, begin, kept, epoch)
    own_trace = trace(run)
    if not isinstance(own_trace, str):
        billed = any(window.phase == "select" for window in own_trace.windows())
        if billed != (method.chooses or selection.chooses):
            yield Flaw(SAMPLES, f"phase select took place: {billed}; its method or selection chooses: {not billed}")
    notes = {"steps": len(steps), "warmup_steps_of_head": len(chosen)}
    if why := first(differences({name: told(run, "notes", name) for name in notes}, notes)):
        yield Flaw(RECORD, f"notes: {why}")
    yield from measures(run, method, selection, pool)


def _warms(spec: RunSpec, method: Any, selection: Any) -> bool:
    """Return whether a new head is warmed: norms at a random one say little."""
    measures = hasattr(method, "blueprint") and method.chooses and not (method.blueprint and method.blend_weight == 1)
    return spec.model.kind == "encoder" and bool(measures or selection.warms_head)


def _epochs(run: Dossier, steps: Sequence[Taken], begin: int, kept: int, epoch: int) -> Iterator[Flaw]:
    """Yield what is wrong with batches: an epoch has every example once, in batches of one size but for one."""
    spec = run.spec
    assert spec is not None
    least = processes_of(run)  # where a batch has fewer examples, processes repeat one to keep step
    batch_size, last = spec.training.batch_size, kept - (epoch - 1) * spec.training.batch_size
    size, rest, repeats = max(batch_size, least), max(last, least), min(batch_size, last) < least
    covered, whole = 0, None
    for start in range(0, len(steps), epoch):
        own = [_joined(step.mains) for step in steps[max(start, begin) : start + epoch]]
        odd = [p.batch for p in own if p.batch != size]
        full = len(own) == epoch
        wrong = full and sum(p.batch for p in own) != (epoch - 1) * size + rest
        if wrong or any(batch != rest for batch in odd) or len(odd) > 1:
            why = f"steps {start + 1} to {start + epoch}: batches of {odd or size} examples, an epoch has {kept}"
            yield Flaw(WORK, why)
            return
        if full:
            sums = (0, 0) if repeats else (sum(p.tokens for p in own), sum(p.squared or 0 for p in own))
            if whole not in (None, sums):
                why = f"steps {start + 1} to {start + epoch}: {sums[0]} tokens, an epoch before had {whole[0]}"
                yield Flaw(WORK, why)
                return
            whole, covered = sums, kept
    if whole and not repeats and whole[0] < (words := _least_tokens(run, "train", kept)):
        why = f"an epoch has {whole[0]} tokens, and so many examples have {words} words and more"
        yield Flaw(WORK, why, "unverified", _SPANS)
    seen = told(run, "notes", "examples_trained_on")
    most = min(
        pool_of(run) or kept, kept + sum(p.batch for step in steps for p in step.mains if step.phase == "select")
    )
    if type(seen) is not int or not covered <= seen <= most:
        yield Flaw(WORK, f"notes.examples_trained_on is {seen}, of {covered} to {most}")
    yield from (Flaw(WORK, why) for why in _kept_states(run, steps, whole, kept))


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
    fresh, processes = [0, 0, 0], processes_of(run)
    for number, step in enumerate(steps, start=1):
        main, new = _joined(step.mains), _joined(step.fresh) if step.fresh else None
        training = step.phase == "train"
        resumed = not step.fresh or (below > 0 and training and len(step.fresh) <= processes)
        begins = {p.first_layer for p in step.mains} - ({0} if main.batch <= processes > 1 else set())
        if begins - {below * training} or any(p.last_layer != below for p in step.fresh) or not resumed:
            yield f"step {number} does not begin at layer {below * training}"
            return
        layers = [p.first_layer for p in step.again]
        if (step.again and [*map(_shape, step.again)] != [*map(_shape, step.mains)]) or (
            training and isinstance(found, Set) and layers != [again] * (again is not None) * processes
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
    # An example that another process takes over goes through that one's layers again.
    odd = fresh[0] > kept or fresh != expected if processes == 1 else any(map(int.__lt__, fresh, expected))
    if below and spec.training.cache_prefix == "auto" and odd:
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


# --- beside the other runs of the block -------------------------------------------------------------


def _alike(run: Dossier) -> Iterator[Flaw]:
    """Runs of one block score the same items, and train on the same batches as far as they chose the same examples."""
    record, own = run.record, walk(run)
    if record.status != "ok":
        return
    mates = (m for m in run.mates if m.run_id < run.run_id and m.record.status == "ok")
    mate = next(mates, None)
    pairs: list[tuple[str, str, Sequence[Pass], Sequence[Pass]]] = []
    if mate is not None:
        pairs.append((mate.run_id, "psi", own.final, walk(mate).final))
        one, other = (next((s.validation for s in w.steps if s.validation), []) for w in (own, walk(mate)))
        pairs.append((mate.run_id, "validation", one, other))
    alike = (m for m in chain([mate], mates) if m is not None and m.record.selection_sha256 == record.selection_sha256)
    if (mate := next(alike, None)) is not None:
        most = max(processes_of(run), processes_of(mate))
        for a, b in zip(own.steps, walk(mate).steps, strict=False):
            if a.phase == b.phase == "train" and a.mains and b.mains:
                # Several processes deal a batch out by who has kept which, and repeat an example of a small one.
                both = _joined(a.mains), _joined(b.mains)
                small = most > 1 and max(p.batch for p in both) <= most
                pairs += [] if small else [(mate.run_id, "training", both[:1], both[1:])]
    for name, what, mine, theirs in pairs:
        if mine and theirs and Counter(map(_shape, mine)) != Counter(map(_shape, theirs)):
            yield Flaw(WORK, f"{what}: other shapes than those of run {name}, of the same block")
            return


RULES: tuple[Rule, ...] = (
    Rule("F5", "every item is scored, and the same ones every time", CURE, _scored),
    Rule("F6", "its steps are those of its recipe, and its choice measured what it says", CURE, _trains),
    Rule("F7", "runs of one block compute on the same shapes", CURE, _alike),
)
