"""The one visible training loop. It never asks which method it runs: exactly what requires grad is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cprbench.adapt.devices import Engine
from cprbench.adapt.models import LoadedModel, first_trained_layer, layers_of, stack_holder
from cprbench.adapt.objectives import Item, Objective, Shape, Work
from cprbench.adapt.prefix import CachePlan, Prefix
from cprbench.adapt.schedule import Schedule, Share
from cprbench.errors import TrainingError
from cprbench.spec import TrainingSpec, stream_seed

#: Batches are sorted by length inside chunks of this many, so that padding is small and order still random.
_BATCHES_PER_BUCKET = 50


#: after_step(step, loss, passes of all processes): a step was taken. True: it was the last.
AfterStep = Callable[[int, float, Sequence[Work]], bool | None]


def plan_batches(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs as lists of indices: shuffled, bucketed by length, shuffled again.

    Depends on nothing but its arguments, so every method of a block sees the same batches.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, "data order"))
    batches: list[list[int]] = []
    for _ in range(epochs):
        order = torch.randperm(len(lengths), generator=generator).tolist()
        epoch: list[list[int]] = []
        chunk = batch_size * _BATCHES_PER_BUCKET
        for start in range(0, len(order), chunk):
            bucket = sorted(order[start : start + chunk], key=lambda i: lengths[i])
            epoch += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        batches += [epoch[i] for i in torch.randperm(len(epoch), generator=generator).tolist()]
    return batches


def set_modes(model: nn.Module) -> None:
    """Put modules that hold training tensors in train mode and frozen ones in eval mode (DESIGN rule 4).

    Modules without parameters, dropout among them, follow the module that holds them; those that stand between the
    input tables and the layers (GPT-2's dropout) follow the tables.
    """
    _set_modes(model)
    tables = False
    for child in stack_holder(model).children():
        if isinstance(child, nn.ModuleList):
            break
        tables |= any(parameter.requires_grad for parameter in child.parameters())
        if next(child.parameters(), None) is None:
            child.train(tables)


def _set_modes(module: nn.Module) -> None:
    module.training = any(parameter.requires_grad for parameter in module.parameters())
    for child in module.children():
        if next(child.parameters(), None) is None:
            child.train(module.training)
        else:
            _set_modes(child)


def build_optimizer(model: nn.Module, recipe: TrainingSpec, learning_rate: float) -> torch.optim.Optimizer:
    """Return fused AdamW over exactly the tensors that require grad; no decay on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw8bit":
        import bitsandbytes

        eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=learning_rate)
        return eight_bit
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_scale(step: float, steps: float, recipe: TrainingSpec) -> float:
    """Return the factor on the learning rate at `step` of `steps`: linear up, then linear down to zero, or constant.

    Where steps are not known ahead, both are what was spent and may be spent, in units of a step.
    """
    warmup = math.ceil(recipe.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 1.0 if recipe.schedule == "constant" else (steps - step) / max(1, steps - warmup)


def train(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Iterable[Sequence[Item]],
    recipe: TrainingSpec,
    learning_rate: float,
    after_step: AfterStep,
    *,
    scale: Callable[[int], float] | None = None,
    cache: CachePlan | None = None,
    folder: Path | None = None,
) -> int:
    """Train on `batches`, one step each; return the bytes of the optimizer's state.

    `after_step(step, loss, passes of all processes)` is called after every step, counted from 1, and says whether to
    end there. `scale`: the factor on the rate before every step, counted from 0; without it the recipe's schedule over
    all batches. `cache`: what to keep of the frozen layers (prefix.plan_cache), on disk in `folder`. Raises
    TrainingError when there is nothing to train or when the loss is not a number.
    """
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("no tensor requires grad: the method left nothing to train.")
    cache = cache or CachePlan.off()
    if scale is None:
        batches = list(batches)
        scale = partial(learning_rate_scale, steps=len(batches), recipe=recipe)
    optimizer = build_optimizer(loaded.model, recipe, learning_rate)
    set_modes(loaded.model)
    schedule = schedule_of(loaded, objective, recipe, cache, engine.processes)
    if recipe.gradient_checkpointing:
        checkpoint_layers(loaded)
    losses_of = engine.in_step(objective)
    with Prefix(loaded, objective, cache, folder or Path()) as prefix:
        for step, batch in enumerate(batches):
            rate = learning_rate * scale(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            shares = schedule.shares(batch)
            mine = shares[engine.rank]
            with engine.autocast(), _resumed(prefix, mine, cache):
                total = losses_of(mine.items).sum() * (not mine.idle)
            # Gradients are averaged over processes, the loss over examples.
            engine.accelerator.backward(total * (engine.processes / len(batch)))
            value = engine.sum(total.detach()) / len(batch)
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {step + 1} (learning rate {learning_rate:g}). "
                    "Lower the learning rate (--set training.learning_rate=…), or use precision fp32."
                )
            clip(trained, recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if after_step(step + 1, value, [work for share in shares for work in schedule.work(share)]):
                break
    if engine.processes > 1:
        engine.accelerator.free_memory()  # it would hold on to the wrapped model, whose hooks then run in later steps
    return state_bytes(optimizer)


def schedule_of(
    loaded: LoadedModel, objective: Objective, recipe: TrainingSpec, cache: CachePlan, processes: int
) -> Schedule:
    """Return how `train` deals out batches, with what trains as it is now."""
    first = first_trained_layer(loaded) if recipe.gradient_checkpointing else None
    layers = len(layers_of(loaded.model))
    return Schedule(objective, cache, layers=layers, recompute_from=first, processes=processes)


def _resumed(prefix: Prefix, share: Share, cache: CachePlan) -> AbstractContextManager[None]:
    if cache.mode == "off" or share.idle:
        return nullcontext()
    return prefix.resumed(prefix.states(share.items, share.fresh, share.keep))


def checkpoint_layers(loaded: LoadedModel) -> None:
    """Let every layer that the backward pass reaches forget its activations and compute them again when needed.

    Layers below keep none as it is. Frozen layers above stay without dropout: only the layer itself, which has none of
    its own, is put in train mode.
    """
    model: Any = loaded.model
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # else every layer has a backward pass, whatever trains
    for layer in layers_of(model)[first_trained_layer(loaded) :]:
        layer.training = True


def clip(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Scale gradients to a joint L2 norm of at most `limit`; those within it are left alone, which saves a pass."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if norm > limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's moments: for AdamW 2 x 4 per trained parameter. Step counters are left out."""
    tensors = (v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim)
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def score(
    loaded: LoadedModel,
    objective: Objective,
    items: Sequence[Item],
    batch_size: int,
    turns: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[tuple[int, list[float]]], Shape]]:
    """Yield, batch by batch, (index of item, log-likelihood of each choice) and the shape of the pass.

    Items are taken in order of length and scored in float32. `turns`: (which, of how many) processes this is. The
    model is in eval mode meanwhile and back in its own modes afterwards.
    """
    modes = {name: module.training for name, module in loaded.model.named_modules()}
    loaded.model.eval()
    try:
        order = sorted(range(len(items)), key=lambda i: items[i].length)
        for start in range(turns[0] * batch_size, len(order), turns[1] * batch_size):
            chosen = order[start : start + batch_size]
            # Never in bf16: rounded logits tie, and an exported model would not score the same psi.
            values, shape = objective.log_likelihoods([items[i] for i in chosen])
            yield list(zip(chosen, values, strict=True)), shape
    finally:
        for name, module in loaded.model.named_modules():
            module.training = modes[name]
