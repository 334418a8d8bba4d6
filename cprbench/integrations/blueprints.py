"""Blueprints in loops that are not ours: watch a validation loop, train what a file says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import cprbench
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.gradients.stream import SquaredNorms, Stream
from cprbench.adapt.models import Partition, partition, task_head
from cprbench.blueprint import concentration, files, picking, signals
from cprbench.blueprint.schema import GENERAL, Blueprint
from cprbench.errors import ModelError, SpecError
from cprbench.schema import parse

#: Loss of a model's output on the (sliced) arguments that it was called with: (output, arguments by name) -> scalar.
Loss = Callable[[Any, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Applied:
    """What `apply_blueprint` left training."""

    submodules: tuple[str, ...]
    k_reached: float
    parameters: tuple[str, ...]  # their names in the model; those of its task head stand first
    notes: list[str]  # what could not be checked


def apply_blueprint(
    model: nn.Module,
    path: str | Path,
    k: float = 0.15,
    *,
    pick: str = "norm",
    embed: bool = False,
    granularity: str = "submodule",
    domain: str | None = None,
    uncertainty: Any = "ignore",
    source: str | None = None,
    foreign: bool = False,
) -> Applied:
    """Set requires_grad on the k-set that a blueprint picks, and on the task head; freeze everything else.

    Build the optimizer afterwards, over the parameters that require gradients. `source`: where the weights came from
    (folder, alias or hub id), to check that they are those that were measured; without it only names and sizes are.
    `foreign`: accept other weights all the same.
    Raises SpecError for a broken file or one of another model, MethodError for a k that cannot be filled.
    """
    blueprint, cells = files.read(path), partition(model, task_head(model))
    known = None if source is None else resolve(source, offline=True)
    theirs = "" if blueprint.model is None else blueprint.model.weights_sha256
    notes = files.check_model(
        blueprint,
        weights_sha256=theirs if known is None else known.weights_sha256,
        revision=None if known is None else known.revision,
        sizes=cells.sizes,
        model=type(model).__name__ if source is None else source,
        foreign=foreign,
    )
    if known is None and theirs:
        notes.append(
            "Names and sizes fit; whether these are the weights that were measured was not checked (source=…)."
        )
    norms = signals.norms_of(blueprint, domain=domain, uncertainty=uncertainty)
    picked = picking.pick(
        norms, cells.sizes, cells.total, k, by=pick, embed=embed, cost=blueprint.step_cost, granularity=granularity
    )
    names = [*cells.new_head, *(name for cell in picked.submodules for name in cells.parameters[cell])]
    wanted = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    return Applied(picked.submodules, picked.k_reached, tuple(names), notes)


@dataclass
class Watched:
    """What a watched loop has shown so far: one row of norms per sampled call."""

    cells: Partition
    every: int
    examples: int
    calls: int = 0
    passed_over: int = 0  # sampled calls of fewer rows than `examples`, or whose gradients were not finite
    seconds: float = 0.0  # spent in probes, beyond the loop's own work
    rows: list[dict[str, float]] = field(default_factory=list)
    dtype: torch.dtype = torch.float32

    def norms(self) -> dict[str, float]:
        """Return submodule -> median over sampled calls of the norm of the mean gradient of `examples` examples.

        Raises SpecError before anything was sampled.
        """
        if not self.rows:
            raise SpecError(
                f"nothing was sampled in {self.calls} calls; {self.passed_over} were passed over, for fewer than "
                f"{self.examples} rows or gradients that are not finite. Run the loop inside `with`, or lower every "
                "or examples."
            )
        return {cell: median(row[cell] for row in self.rows) for cell in self.cells.sizes}

    def blueprint(self, model_id: str, *, checkpoint: float = 1.0, source: str | None = None) -> Blueprint:
        """Return the norms as a blueprint. `source`: where these very weights lie, so that the file can name them."""
        norms = self.norms()
        spent = ("device_hours", "core_hours", "energy_kwh", "memory_gb_hours", "co2_kg", "flops")
        unmetered = dict.fromkeys(spent, "a watched loop is not metered")
        curve = concentration.pick_curve(picking.rank(norms, self.cells.sizes, "density"), norms, self.cells.sizes)
        exponent, r_squared = concentration.fit_exponent(curve)
        layers = []
        for cell, size in self.cells.sizes.items():
            interval = concentration.bootstrap_ci([row[cell] for row in self.rows], "median", 0)
            width = None if interval is None else interval.model_dump()
            names = list(self.cells.parameters[cell])
            layers.append(
                {
                    "id": cell,
                    "gradient_norm": norms[cell],
                    "parameters": size,
                    "parameter_names": names,
                    "domain_tags": {GENERAL: 1.0},
                    "domains": {GENERAL: {"gradient_norm": norms[cell], "gradient_norm_ci": width}},
                    "k_star_why": "a watched loop sees no single scalars",
                }
            )
        data: dict[str, Any] = {
            "schema": "cprbench.blueprint/1",
            "model_id": model_id,
            "training_checkpoint": checkpoint,
            "layers": layers,
            "measurement": {
                "loss": "that of the watched loop",
                "head": None if not self.cells.new_head else "that of the watched loop",
                "warmup_steps": 0,
                "dtype": "bfloat16" if self.dtype == torch.bfloat16 else "float32",
                "batches": len(self.rows),
                "batch_size": self.examples,
            },
            "concentration": {"pick_curve": curve, "gamma_fit": exponent, "gamma_fit_r_squared": r_squared},
            "k_star_why": "no cost of steps was measured",
            "privacy": {"aggregates_only": True, "note": "no noise, so no formal guarantee"},
            "made": {"tool": f"cprbench {cprbench.__version__}", "seconds": self.seconds, "why_missing": unmetered},
        }
        if source is not None:
            found = resolve(source, offline=True)
            data["model"] = {
                "source": Path(found.source).name,
                "revision": found.revision,
                "weights_sha256": found.weights_sha256,
                "parameters": self.cells.total,
                "kind": found.kind,
            }
        return parse(Blueprint, data, "the watched loop")

    def write(self, path: str | Path, model_id: str, **given: Any) -> Blueprint:
        """Write `blueprint(model_id, **given)` to a file and return it."""
        blueprint = self.blueprint(model_id, **given)
        files.write(blueprint, path)
        return blueprint


@contextmanager
def watch(model: nn.Module, *, every: int = 50, examples: int = 8, loss: Loss | None = None) -> Iterator[Watched]:
    """Measure gradient norms inside an existing validation loop: every `every`-th call of `model`, on `examples` rows.

    The call itself goes through untouched; the probe runs beside it on the first rows of its arguments, in eval mode,
    and leaves gradients, requires_grad, modes and random numbers as they were. Works under no_grad and inference_mode.
    A call of fewer rows is passed over: norms of unlike batches do not compare.
    `loss`: (output, arguments) -> scalar, for models that are not given labels. Raises ModelError where there is none.
    """
    if every < 1 or examples < 2:  # the norm of one example's gradient would be a value of that example
        raise SpecError(f"every = {every}, examples = {examples}: every is at least 1 and examples at least 2.")
    cells = partition(model, task_head(model))
    watched = Watched(cells, every, examples, dtype=next(model.parameters()).dtype)
    original = model.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        output = original(*arguments, **named)
        watched.calls += 1
        if (watched.calls - 1) % every == 0:
            began = time.perf_counter()
            row = _probe(model, original, arguments, named, cells, examples, loss)
            watched.rows += [row] if row else []
            watched.passed_over += not row
            watched.seconds += time.perf_counter() - began
        return output

    patched = "forward" in vars(model)  # accelerate.prepare puts one there
    model.forward = forward
    try:
        yield watched
    finally:
        if patched:
            model.forward = original
        else:
            del model.forward  # the class's own shows again


def _probe(
    model: nn.Module,
    original: Callable[..., Any],
    arguments: Sequence[Any],
    named: Mapping[str, Any],
    cells: Partition,
    examples: int,
    loss: Loss | None,
) -> dict[str, float]:
    """Return submodule -> norm; empty where the call has too few rows or gradients that are not finite."""
    sizes = [len(v) for v in (*arguments, *named.values()) if isinstance(v, Tensor) and v.ndim]
    if not sizes:
        raise ModelError(f"{type(model).__name__} was called without a tensor: pass its inputs one by one (**batch).")
    rows = sizes[0]
    if rows < examples:
        return {}
    norms = SquaredNorms(tuple(cells.sizes))
    parameters = [model.get_parameter(name) for names in cells.parameters.values() for name in names]
    before = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        cut = [_rows(value, rows, examples) for value in arguments]
        cut_named = {name: _rows(value, rows, examples) for name, value in named.items()}
        try:
            for parameter, _, _ in before:
                parameter.grad = None
                parameter.requires_grad_(False)
            for parameter in parameters:
                parameter.requires_grad_(True)
            model.eval()
            with Stream(model, cells.parameters, norms.look):
                output = original(*cut, **cut_named)
                value = getattr(output, "loss", None) if loss is None else loss(output, cut_named)
                if not isinstance(value, Tensor) or value.ndim:
                    raise ModelError(
                        f"{type(model).__name__} was called without labels: there is no loss to measure. Pass labels, "
                        "or watch(model, loss=lambda output, arguments: …) that returns a scalar."
                    )
                value.backward()  # type: ignore[no-untyped-call]
            found = norms.take()
            # Where no token has a label the loss is NaN, and its gradient 0.
            return found if all(map(math.isfinite, (float(value.detach()), *found.values()))) else {}
        finally:
            for parameter, gradient, required in before:
                parameter.grad = gradient
                parameter.requires_grad_(required)
            for module, training in modes.items():
                module.training = training


def _rows(value: Any, rows: int, examples: int) -> Any:
    """Return the first examples of what has one row per example; a copy, since inference tensors take no gradient."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()  # the loop's own graph ends here
    return value[:examples].clone() if value.ndim and len(value) == rows else value.clone()
