"""What a run trained: the set follows from its method, its settings and its norms, and the counts from the set."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from typing import Any

from cprbench.adapt.methods import build_method
from cprbench.adapt.methods.partial import BYTES_PER_PARAMETER
from cprbench.adapt.methods.peft import opaque_in
from cprbench.adapt.methods.peft_config import refuse
from cprbench.adapt.settings import PIN
from cprbench.blueprint import drift, picking, signals
from cprbench.blueprint.budget import Budget, pick_within
from cprbench.blueprint.exchange import to_peft, to_rank_pattern
from cprbench.blueprint.schema import StepCost
from cprbench.errors import CprbenchError, MethodError
from cprbench.meters.flops import Trained, plan_of, supported
from cprbench.plans.parameters import layer_linears, layout
from cprbench.schema import canonical_json
from cprbench.spec import RunSpec, stream_seed
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.evidence import CURE, RECORD, differences, first, once, told

#: Rows of tables that a record's config does not keep: N tells how large they are together.
_UNTOLD = dict.fromkeys(("max_position_embeddings", "type_vocab_size", "n_positions"), 1)
#: Whether the linears of Llama's kin have biases, which it does not keep either; N tells.
_BIASES = tuple({"attention_bias": a, "mlp_bias": m} for a in (False, True) for m in (False, True))


#: More than any model has: what picks submodules tries every depth.
_MOST_LAYERS = 400


class Unknown(Exception):  # noqa: N818 - a verdict that becomes a finding; no user ever meets it
    """Why what a run trained cannot be told from what it kept."""


@dataclass(frozen=True)
class Model:
    """The model of a run. `sizes`: submodule -> parameters; `tensors`: submodule -> name -> shape, tables' rows unsaid.

    `linears`: (submodule, name inside its layer) -> (whole name, inputs + outputs).
    """

    sizes: Mapping[str, int]
    tensors: Mapping[str, Mapping[str, tuple[int, ...]]]
    linears: Mapping[tuple[str, str], tuple[str, int]]
    new_head: int


@dataclass(frozen=True)
class Set:
    """What trained. `parameters` without the new head; `notes`: what the record's notes have to say of it."""

    cells: tuple[str, ...]
    parameters: int
    k_asked: float | None = None
    k_reached: float | None = None
    adapters: Mapping[str, int] | None = None
    tensors: Mapping[str, Sequence[str]] | None = None
    notes: Mapping[str, Any] | None = None


def model_of(run: Dossier) -> Model:
    """Return a run's model by its config, its N and its labels. Raises Unknown where these do not fit together."""
    spec, record = run.spec, run.record
    assert spec is not None
    labels = labels_of(run)
    try:
        config, total = canonical_json(spec.model.config), spec.model.parameters
        return _model(config, spec.model.kind, labels, total, record.new_head_parameters)
    except CprbenchError as error:
        raise Unknown(str(error)) from None


def labels_of(run: Dossier) -> int | None:
    """Return the outputs of a run's new head, as it says or as its task has choices."""
    labels = told(run, "notes", "labels")
    choices = None if isinstance(run.dataset, str) else run.dataset.choices
    if labels is None and choices is not None and run.spec is not None and run.spec.model.kind == "encoder":
        return len(choices)
    return labels if type(labels) is int else None


@lru_cache(maxsize=64)
def _model(config: str, kind: Any, labels: int | None, total: int, new_head: int | None) -> Model:
    kept = json.loads(config)
    if plan_of(kept, kind, labels).layers > _MOST_LAYERS:
        raise Unknown(f"a model of more than {_MOST_LAYERS} layers")
    for biases in _BIASES:
        found = layout({**_UNTOLD, **biases, **kept}, kind, labels)
        tensors, sizes, new = dict(found.tensors), found.sizes, found.new_head_size
        pooler = sizes.get("head", 0) if kept["model_type"] == "bert" else 0
        if pooler and new_head == new + pooler:  # a checkpoint without one: it is part of the new head
            new, sizes = new_head, {cell: size for cell, size in sizes.items() if cell != "head"}
            tensors.pop("head")
        left = total - sum(sizes.values())
        rows = [shape for shape in tensors["embed"].values() if shape[0] == 1 and len(shape) == 2]
        if left == 0 or (rows and left > 0 and left % rows[0][1] == 0):
            names = {
                (cell, inside): (name.removesuffix(".weight"), sum(size))
                for (cell, inside), size in layer_linears(kept, kind).items()
                for name in tensors[cell]
                if name.endswith(f".{inside}.weight")
            }
            return Model({**sizes, "embed": sizes["embed"] + left}, tensors, names, new)
    raise Unknown(f"a model of {total} parameters does not fit its config: {config:.200}")


@once
def set_of(run: Dossier) -> Set | Flaw:
    """Return what a run trained, or why that does not follow from what it kept."""
    spec = run.spec
    assert spec is not None
    try:
        if spec.method.name not in _MAKERS:
            raise Unknown("that is said by a file, or a method, which is not part of a record")
        if (why := uncounted(run)) is not None:
            raise Unknown(why)
        settings = {key: value for key, value in spec.method.settings.items() if not key.endswith(PIN)}
        return _MAKERS[spec.method.name](run, spec, build_method(spec.method.name, settings), model_of(run))
    except Unknown as error:
        why = f"what {spec.method.name} trained cannot be recomputed: {error}"
        return Flaw(RECORD, why, "unverified", "Nothing to do: it is shown and does not rank")
    except CprbenchError as error:
        return Flaw(RECORD, f"what {spec.method.name} trained does not follow from what it kept: {error!s:.300}")


def trained(run: Dossier, found: Set) -> Trained:
    """Return a set as the count of FLOPs reads it."""
    assert run.spec is not None
    return Trained(frozenset(found.cells), run.spec.model.kind == "encoder", found.adapters, found.tensors)


def uncounted(run: Dossier) -> str | None:
    """Return why a run's FLOPs have no count, None where they have one. Raises what `refuse` raises."""
    assert run.spec is not None
    why = supported(run.spec.model.config)
    if why is None and run.spec.method.name == "peft" and told(run, "notes", "adapter_config") is not None:
        return opaque_in(_config(run))
    return why


# --- the sets of all methods ------------------------------------------------------------------------


def _full(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    return Set(tuple(model.sizes), spec.model.parameters)


def _head(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    return Set((), 0)


def _lora(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    ranks = dict.fromkeys(sorted({inside for _, inside in model.linears}), method.r)
    return _adapted(model, {f"{cell}/{inside}": method.r for cell, inside in model.linears}, ranks, {"adapters": ranks})


def _adapted(model: Model, ranks: Mapping[str, int], adapters: Mapping[str, int], notes: Mapping[str, Any]) -> Set:
    """Return the set of adapters of these ranks, by "cell/linear"."""
    sizes = {f"{cell}/{inside}": size for (cell, inside), (_, size) in model.linears.items()}
    cells = {name.partition("/")[0] for name in ranks}
    return Set(
        tuple(cell for cell in model.sizes if cell in cells),
        sum(rank * sizes[name] for name, rank in ranks.items()),
        adapters=adapters,
        notes=notes,
    )


def _tensors(spec: RunSpec, model: Model, tensors: Mapping[str, Sequence[str]]) -> Set:
    kept = {cell: sorted(names) for cell, names in tensors.items() if names}
    shapes = {name: shape for own in model.tensors.values() for name, shape in own.items()}
    size = sum(prod(shapes[name]) for names in kept.values() for name in names)
    return Set(tuple(kept), size, None, size / spec.model.parameters, tensors=kept, notes={"tensors": kept})


def _bitfit(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    biases = {cell: [name for name in own if name.endswith(".bias")] for cell, own in model.tensors.items()}
    return _tensors(spec, model, biases)


def _k_set(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    ranked = list(model.sizes)[::-1]
    if spec.method.name == "random-submodules":
        ranked.reverse()
        random.Random(stream_seed(spec.seed, "random picks")).shuffle(ranked)
    picked = picking.fill(ranked, model.sizes, spec.model.parameters, method.k, embed=method.embed)
    return _whole(model, picked, method.k)


def _whole(model: Model, picked: picking.Picked, k: float | None, notes: Mapping[str, Any] | None = None) -> Set:
    parameters = sum(model.sizes[cell] for cell in picked.submodules)
    return Set(picked.submodules, parameters, k, picked.k_reached, notes=notes)


def _norms(run: Dossier, method: Any) -> tuple[dict[str, float], str, dict[str, Any]]:
    """Return the norms to pick by, the granularity, and what the notes have to say; as Partial._signal."""
    local = told(run, "notes", "gradient_norm")
    if not method.blueprint:
        return local, method.granularity, {}
    published = told(run, "notes", "blueprint", "gradient_norm")
    if method.blend_weight == 1:
        return published, method.granularity, {}
    found = drift.check(published, local, fallback=method.drift_fallback, local_only=method.drift_local_only)
    weight = 0.0 if found.verdict == "local" else method.blend_weight
    said = {"drift": asdict(found), "blend_weight": method.blend_weight, "blend_weight_used": weight}
    if found.verdict == "local":
        return local, method.granularity, {"blueprint": said}
    blended = signals.blend(published, local, method.blend_weight)
    granularity = "layer" if found.verdict == "layers" else method.granularity
    return blended, granularity, {"blueprint": said, "blended_norm": blended}


def _partial(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    sizes, total = model.sizes, spec.model.parameters
    if not method.chooses:
        return _whole(model, picking.Picked(tuple(sizes), 1.0), 1.0)
    try:
        norms, granularity, notes = _norms(run, method)
        picking.check_norms(norms, sizes)
        cost = told(run, "notes", "step_cost")
        cost = None if cost is None else StepCost.model_validate(cost)
        if method.budget:
            groups, group_norms, group_sizes = picking.grouped(norms, sizes, granularity)
            found = pick_within(
                group_norms,
                group_sizes,
                Budget.parse(method.budget),
                step_cost=cost,
                fixed_memory_bytes=told(run, "notes", "memory_bytes"),
                bytes_per_parameter=BYTES_PER_PARAMETER,
                embed=method.embed,
            )
            taken = {name for group in found.submodules for name in groups[group]}
            return _whole(model, picking.Picked(tuple(n for n in sizes if n in taken), found.k_reached), None, notes)
        # A blueprint's own k stands in the file alone.
        k = run.record.k_asked or 0.0 if method.k == "blueprint" else method.k
        picked = picking.pick(norms, sizes, total, k, by=method.pick, embed=method.embed, cost=cost,
                              granularity=granularity)  # fmt: skip
    except (TypeError, AttributeError, ValueError) as error:
        raise MethodError(f"its notes do not hold the norms that it picked by ({error!s:.120}).") from None
    return _whole(model, picked, k, notes)


def _partial_lora(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    chosen = _partial(run, spec, method, model)
    picked = {cell: [name for (own, _), (name, _) in model.linears.items() if own == cell] for cell in chosen.cells}
    config: dict[str, Any] = {**to_peft(chosen.cells, picked, r=method.r, alpha=method.alpha), "task_type": None}
    config["lora_dropout"] = method.dropout
    if method.ranks == "norms":
        config |= to_rank_pattern(
            _norms(run, method)[0], chosen.cells, picked, method.r, scaling=method.alpha / method.r
        )
    pattern = config.get("rank_pattern", {})
    ranks = {
        f"{cell}/{inside}": pattern.get(f"^{re.escape(name)}", method.r)
        for (cell, inside), (name, _) in model.linears.items()
        if cell in chosen.cells
    }
    notes = {**(chosen.notes or {}), "picked": list(chosen.cells), "adapters": ranks, "adapter_config": config}
    found = _adapted(model, ranks, ranks, notes)
    return Set(found.cells, found.parameters, chosen.k_asked, chosen.k_reached, ranks, None, notes)


def _config(run: Dossier) -> dict[str, Any]:
    config = told(run, "notes", "adapter_config")
    refuse(config, "notes.adapter_config")
    assert isinstance(config, dict)
    return config


def _peft(run: Dossier, spec: RunSpec, method: Any, model: Model) -> Set:
    config, ranks = _config(run), told(run, "notes", "adapters")
    wanted, out = config.get("target_modules"), config.get("exclude_modules") or []
    if not isinstance(wanted, list) or any(config.get(k) for k in ("layers_to_transform", "layers_pattern")):
        raise Unknown("peft's own rules say which linears its config means, and peft is not asked here")
    if ranks is None:
        raise Unknown("it has adapters on what is no linear of a layer")
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise MethodError("notes.adapters does not tell the rank of every adapter.")
    inside, outside = (tuple(f".{end}" for end in ends) for ends in (wanted, out))
    names = {f"{cell}/{linear}": f".{name}" for (cell, linear), (name, _) in model.linears.items()}
    expected = {key for key, name in names.items() if name.endswith(inside) and not name.endswith(outside)}
    allowed = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    if set(ranks) != expected or not set(ranks.values()) <= allowed:
        raise MethodError("notes.adapters are not those of notes.adapter_config.")
    return _adapted(model, ranks, ranks, {})


_MAKERS: Mapping[str, Callable[[Dossier, RunSpec, Any, Model], Set]] = {
    "bitfit": _bitfit,
    "full": _full,
    "head": _head,
    "last-layers": _k_set,
    "lora": _lora,
    "partial": _partial,
    "partial+lora": _partial_lora,
    "peft": _peft,
    "qlora": _lora,
    "random-submodules": _k_set,
}


# --- the rules --------------------------------------------------------------------------------------


def _own_set(run: Dossier) -> Iterator[Flaw]:
    record, spec = run.record, run.spec
    if spec is None:
        return
    if record.total_parameters != spec.model.parameters:
        yield Flaw(RECORD, f"total_parameters is {record.total_parameters}, N of its model is {spec.model.parameters}")
    if record.status != "ok":
        if any((record.trained_parameters, record.trained_submodules, record.k_reached, record.optimizer_state_bytes)):
            yield Flaw(RECORD, "a run that did not end well tells nothing of what trained, and this one does")
        return
    try:
        new_head = model_of(run).new_head
    except Unknown as error:
        yield Flaw(RECORD, f"what trained cannot be counted: {error}", "unverified")
        return
    choices = None if isinstance(run.dataset, str) else run.dataset.choices
    expected = len(choices) if spec.model.kind == "encoder" and choices is not None else labels_of(run)
    if (labels := told(run, "notes", "labels")) != expected:
        yield Flaw(RECORD, f"notes.labels is {labels}, this task has {expected} choices for a head")
    if record.new_head_parameters != new_head:
        yield Flaw(RECORD, f"new_head_parameters is {record.new_head_parameters}, a head of {labels} has {new_head}")
    found = set_of(run)
    if isinstance(found, Flaw):
        yield found
        return
    said = {
        "trained_submodules": record.trained_submodules,
        "trained_parameters": record.trained_parameters,
        "k_asked": record.k_asked,
        "k_reached": record.k_reached,
    }
    recomputed = dict(zip(said, (list(found.cells), found.parameters, found.k_asked, found.k_reached), strict=True))
    notes = found.notes or {}
    own = {key: told(run, "notes", key) for key in notes}
    if "blueprint" in notes and isinstance(own["blueprint"], dict):
        own["blueprint"] = {key: value for key, value in own["blueprint"].items() if key in notes["blueprint"]}
    if isinstance(own.get("tensors"), dict):  # in the order of the live model
        own["tensors"] = {cell: sorted(map(str, names)) for cell, names in own["tensors"].items()}
    if why := first(differences({**said, "notes": own}, {**recomputed, "notes": dict(notes)})):
        yield Flaw(RECORD, why)


def _own_state(run: Dossier) -> Iterator[Flaw]:
    record, spec = run.record, run.spec
    if spec is None or record.status != "ok":
        return
    if record.trained_parameters is None or record.new_head_parameters is None:
        yield Flaw(RECORD, "a run that ended well tells trained_parameters and new_head_parameters")
        return
    trained_in_all, said = record.trained_parameters + record.new_head_parameters, record.optimizer_state_bytes or 0
    if spec.training.optimizer == "adamw" and said != 8 * trained_in_all:
        yield Flaw(RECORD, f"optimizer_state_bytes is {said}, two moments of {trained_in_all} are {8 * trained_in_all}")
    elif spec.training.optimizer != "adamw":
        level: Any = "unverified" if 2 * trained_in_all <= said <= 9 * trained_in_all + 2**20 else "wrong"
        yield Flaw(RECORD, f"optimizer_state_bytes is {said}: how bitsandbytes packs moments is not known here", level)


RULES: tuple[Rule, ...] = (
    Rule("F1", "what trained follows from the method and its norms", CURE, _own_set),
    Rule("F2", "the optimizer's state is that of what trained", CURE, _own_state),
)
