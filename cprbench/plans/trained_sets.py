"""What a method will train, before it has run: from its settings, a blueprint or a scan, and a model's tensors.

A set that only a run can choose has bounds instead: the k-set from the input upwards, under which every layer has a
backward pass, and the k-set from the output downwards, under which the fewest have. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cprbench.adapt.methods import Method, Target
from cprbench.blueprint import files, signals
from cprbench.blueprint.exchange import from_spectrum
from cprbench.blueprint.picking import Picked, fill, pick
from cprbench.errors import MethodError
from cprbench.meters.flops import Kind, Trained
from cprbench.plans.parameters import layer_linears

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedSet:
    """What trains. `bound`: "" where that is known before the run, else "worst" or "best" for memory and FLOPs.

    `measures`: whether the run measures gradient norms of its own before.
    """

    trained: Trained
    k_reached: float | None = None
    bound: str = ""
    measures: bool = False


def trained_sets(method: Method, target: Target, config: Config, *, new_head: bool) -> list[TrainedSet]:
    """Return the set that a method trains, or the worst and the best that it may come to train.

    Raises what the method's own check raises, and MethodError for methods whose set no plan can bound.
    """
    blueprint = _blueprint(method)
    if blueprint is not None and blueprint.model is not None:  # a config holds no weights that could differ
        target = replace(target, weights_sha256=blueprint.model.weights_sha256)
    method.check(target)
    cells = frozenset(target.sizes)
    match method.name:
        case "full":
            return [TrainedSet(Trained(cells, new_head), 1.0)]
        case "head":
            return [TrainedSet(Trained(frozenset(), new_head))]
        case "lora" | "qlora":
            return [TrainedSet(Trained(cells, new_head, _ranks(method, target, config)))]
        case "bitfit":
            biases = {c: [n for n in names if n.endswith("bias")] for c, names in target.tensors.items()}
            return [TrainedSet(_some(biases, new_head))]
        case "spectrum":
            return [_scanned(method, target, new_head)]
        case "last-layers":
            return [_whole(_filled(method, list(target.sizes)[::-1], target), new_head)]
        case "random-submodules":
            return _bounds(method, target, new_head)
        case "partial" | "partial+lora":
            return _picked(method, target, config, blueprint, new_head)
    raise MethodError(
        f"method {method.name!r} cannot be planned: what a peft config trains is counted when it runs. Where it is "
        "plain LoRA, plan lora of the same rank for an estimate."
    )


def _blueprint(method: Any) -> Any:
    return files.read(method.blueprint) if getattr(method, "blueprint", "") else None


def _picked(method: Any, target: Target, config: Config, blueprint: Any, new_head: bool) -> list[TrainedSet]:
    """Return the set of `partial`, or its bounds; with adapters in place of own tensors for `partial+lora`."""
    if getattr(method, "budget", ""):
        raise MethodError(f"{method.name}.budget is spent on what a run measures first. Plan with {method.name}.k.")
    measures = bool(method.chooses) and (blueprint is None or method.blend_weight < 1)
    if not method.chooses or (method.k == 1 and method.embed):
        found = [_whole(Picked(tuple(target.sizes), 1.0), new_head)]
    elif blueprint is None:
        found = _bounds(method, target, new_head)
    else:
        norms = signals.norms_of(blueprint, domain=method.domain or None, uncertainty=method.uncertainty)
        k = blueprint.k_star if method.k == "blueprint" else method.k
        chosen = pick(
            norms,
            target.sizes,
            target.total,
            k,
            by=method.pick,
            embed=method.embed,
            cost=blueprint.step_cost,
            granularity=method.granularity,
        )
        found = [_whole(chosen, new_head)]
    found = [replace(one, measures=measures) for one in found]
    if method.name == "partial":
        return found
    ranks = _ranks(method, target, config)
    return [replace(one, trained=replace(one.trained, lora=ranks)) for one in found]


def _bounds(method: Any, target: Target, new_head: bool) -> list[TrainedSet]:
    upwards = list(target.sizes)
    worst, best = (_whole(_filled(method, order, target), new_head) for order in (upwards, upwards[::-1]))
    if worst.trained.cells == best.trained.cells:
        return [worst]
    return [replace(worst, bound="worst"), replace(best, bound="best")]


def _filled(method: Any, ranked: Sequence[str], target: Target) -> Picked:
    return fill(ranked, target.sizes, target.total, method.k, embed=method.embed)


def _whole(picked: Picked, new_head: bool) -> TrainedSet:
    return TrainedSet(Trained(frozenset(picked.submodules), new_head), picked.k_reached)


def _some(tensors: Mapping[str, Sequence[str]], new_head: bool) -> Trained:
    """Return what trains single tensors by name."""
    kept = {cell: names for cell, names in tensors.items() if names}
    return Trained(frozenset(kept), new_head, tensors=kept)


def _scanned(method: Any, target: Target, new_head: bool) -> TrainedSet:
    """Return the set of a Spectrum scan: a k-set of its ranking (JSON), or the parameters that it names (YAML)."""
    from cprbench.adapt.methods.spectrum import is_json, ranked

    text = files.read_bytes(Path(method.scan)).decode("utf-8")
    if is_json(text):
        return _whole(_filled(method, ranked(text, target.tensors), target), new_head)
    named = set(from_spectrum(text, target.tensors).parameters)
    return TrainedSet(_some({c: [n for n in names if n in named] for c, names in target.tensors.items()}, new_head))


def _ranks(method: Any, target: Target, config: Config) -> dict[str, int]:
    """Return linear -> rank: adapters on every linear, of the mean rank where ranks follow norms."""
    kind: Kind = "causal" if target.kind == "causal" else "encoder"
    return dict.fromkeys(sorted({name for _, name in layer_linears(config, kind)}), method.r)
