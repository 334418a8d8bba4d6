"""What a run measured to choose by: of as many examples as its method and selection ask for, here or before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cprbench.adapt.methods import build_method
from cprbench.adapt.selection import build_selection
from cprbench.adapt.selection.predicted import LEAST_MEASURED
from cprbench.adapt.settings import PIN
from cprbench.submissions.dossier import Dossier, Flaw
from cprbench.submissions.rules.costs import CACHED, cached
from cprbench.submissions.rules.evidence import WORK, once, told
from cprbench.submissions.rules.work import walk


def unpinned(settings: Mapping[str, Any]) -> dict[str, Any]:
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


def _wanted(run: Dossier, method: Any, selection: Any, pool: int) -> dict[str, int]:
    """Return of how many examples choosing measures norms, gradients and states."""
    spec = run.spec
    assert spec is not None
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
    return wanted


def _measured(run: Dossier) -> Counter[str]:
    """Return of how many examples choosing measured them, and how many steps it timed."""
    assert run.spec is not None
    features, found = run.spec.selection.name in ("predicted", "coreset"), Counter[str]()
    for p in walk(run).measures:
        kind = {"all": "norms", "activations": "gradients", "nothing": "states"}[p.trains]
        found[kind if kind != "states" or features else "timed"] += p.batch if kind != "states" or features else 1
    return found


@once
def paid_before(run: Dossier) -> bool:
    """Return whether earlier attempts must have measured scores: history has them, a later attempt's bill does not."""
    spec = run.spec
    if spec is None or run.record.attempts == 1 or not told(run, "notes", "scores"):
        return False
    if (pool := pool_of(run)) is None or run.record.status != "ok":
        return True
    selection = build_selection(spec.selection.name, unpinned(spec.selection.settings))
    method = build_method(spec.method.name, unpinned(spec.method.settings))
    wanted, found = _wanted(run, method, selection, pool), _measured(run)
    return any(found[kind] < wanted[kind] for kind in ("gradients", "states"))


def _before(run: Dossier) -> list[Dossier]:
    """Return the runs here that a run repeats, the last one first."""
    found = [run]
    while (before := run.siblings.get(found[-1].record.previous or "")) and all(before is not own for own in found):
        found.append(before)
    return found[1:]


def measures(run: Dossier, method: Any, selection: Any, pool: int | None) -> Iterator[Flaw]:
    """Yield what is wrong with the examples whose norms, gradients or states were measured."""
    spec = run.spec
    if pool is None or spec is None:
        return
    recipe, wanted, found = spec.training, _wanted(run, method, selection, pool), _measured(run)
    timed = found["timed"]
    for p in walk(run).measures:
        times = p.trains == "nothing" and spec.selection.name not in ("predicted", "coreset")
        most = recipe.select_batch_size * (1 + times * recipe.batch_size)
        if p.backward != (p.trains != "nothing") or p.batch > most:
            yield Flaw(WORK, f"choosing measured {p.batch} examples ({p.trains}) in one pass, backward: {p.backward}")
    asked = getattr(method, "pick", "") == "per-cost" or bool(getattr(method, "budget", ""))
    if timed % 4 or (timed and not asked):
        yield Flaw(WORK, f"{timed} steps were timed to choose by")
    for kind, examples in wanted.items():
        if found[kind] == examples or (kind != "norms" and found[kind] < examples and cached(run)):
            continue
        why = f"choosing measures {kind} of {examples} examples, and it measured {found[kind]}"
        if kind == "norms" or found[kind] > examples or not paid_before(run):
            yield Flaw(WORK, why)
            continue
        before = _before(run)
        taken = any(CACHED in r.flags for own in before for r in own.record.readings)
        if not taken and found[kind] + sum(_measured(own)[kind] for own in before if own.spec) < examples:
            cure = "Pack the runs that it repeats; where one was killed, run it again into a new --out"
            yield Flaw(WORK, f"{why}: no earlier attempt here measured the others", "unverified", cure)
