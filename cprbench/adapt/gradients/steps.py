"""What a training step costs by how many parameters train and how deep they lie: timed here, on real batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from cprbench.adapt.devices import Engine
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.adapt.training import build_optimizer
from cprbench.blueprint.picking import layers_reached
from cprbench.blueprint.schema import StepCost
from cprbench.spec import TrainingSpec

#: observe(submodules that trained, shape): a step was taken.
StepObserver = Callable[[Sequence[str], Shape], None]
_REPEATS = 3


def probe_sets(sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return small sets that tell depth and size apart: the top alone, the last layer, the first, every third."""
    reached = layers_reached(sizes)
    layers = max(reached.values())
    inside = [name for name in sizes if name.partition(".")[2]]
    top = tuple(name for name in sizes if reached[name] == 0) or tuple(n for n in inside if reached[n] == 1)
    last = tuple(name for name in inside if reached[name] == 1)
    first = tuple(name for name in inside if reached[name] == layers)
    third = tuple(name for name in inside if (layers - reached[name]) % 3 == 0)
    return list(dict.fromkeys((top, last, first, third)))


def time_steps(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batch: Sequence[Item],
    sets: Sequence[Sequence[str]],
    recipe: TrainingSpec,
    observe: StepObserver,
) -> list[float]:
    """Return the seconds of a step (forward, backward, clipping, AdamW) that trains each of `sets`, the best of three.

    Sets take turns after a first round that is not timed. The learning rate is 0, so weights stay as they are.
    """
    model = loaded.model
    model.eval()
    found: list[list[float]] = [[] for _ in sets]
    for _ in range(_REPEATS + 1):
        for cells, seconds in zip(sets, found, strict=True):
            loaded.train_only(cells)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = build_optimizer(model, recipe.model_copy(update={"weight_decay": 0.0}), 0.0)
            wait(engine)
            began = time.perf_counter()
            with engine.autocast():
                loss, shape = objective.loss(batch)
            engine.accelerator.backward(loss)
            engine.accelerator.clip_grad_norm_(trained, recipe.clip_norm)
            optimizer.step()
            wait(engine)
            seconds.append(time.perf_counter() - began)
            model.zero_grad(set_to_none=True)
            observe(cells, shape)
    return [min(seconds[1:]) for seconds in found]


def saved_bytes(
    loaded: LoadedModel, objective: Objective, engine: Engine, batch: Sequence[Item], cells: Sequence[str]
) -> int:
    """Return the bytes that autograd keeps for the backward pass of a step that trains `cells`, weights excluded."""
    loaded.train_only(cells)
    loaded.model.eval()
    held = {p.untyped_storage().data_ptr(): 0 for p in loaded.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), engine.autocast():
        objective.loss(batch)
    return sum(held.values())


def step_cost(
    sets: Sequence[Sequence[str]], seconds: Sequence[float], sizes: Mapping[str, int], shape: Shape
) -> StepCost:
    """Return seconds per forward pass, layer of backward and parameter: least squares over timed sets, none below 0."""
    reached = layers_reached(sizes)
    rows = [(1.0, max(reached[n] for n in cells), sum(sizes[n] for n in cells) / 1e6) for cells in sets]
    matrix, wanted = np.array(rows), np.array(seconds)
    kept = [0, 1, 2]
    while True:
        solved = np.linalg.lstsq(matrix[:, kept], wanted, rcond=None)[0]
        if (solved >= 0).all():
            break
        kept.remove(kept[int(solved.argmin())])
    parts = dict.fromkeys((0, 1, 2), 0.0) | dict(zip(kept, solved.tolist(), strict=True))
    return StepCost(
        forward_seconds=parts[0],
        backward_seconds_per_layer=parts[1],
        seconds_per_parameter=parts[2] / 1e6,
        batch_size=shape.batch,
        tokens=shape.batch * shape.length,
    )


def wait(engine: Engine) -> None:
    """Return when the device has done what it was given."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
