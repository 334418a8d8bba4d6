"""The one visible training loop. It never asks which method it runs: exactly what requires grad is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.errors import TrainingError
from cprbench.spec import TrainingSpec, stream_seed

#: Batches are sorted by length inside chunks of this many, so that padding is small and order still random.
_BATCHES_PER_BUCKET = 50


@dataclass(frozen=True)
class Engine:
    """Device and precision, the same for all arms (accelerate decides what this machine has)."""

    accelerator: Accelerator
    precision: str

    @classmethod
    def start(cls, precision: str, *, bf16_is_fast: bool) -> Engine:
        """Return an engine; precision "auto" is bf16 where the hardware multiplies it natively, else fp32."""
        on_gpu = torch.cuda.is_available()
        if precision == "auto":
            fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bf16_is_fast
            precision = "bf16" if fast else "fp32"
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if precision == "bf16" else "no")
        return cls(accelerator, precision)

    @property
    def device(self) -> torch.device:
        """The device on which models run."""
        device: torch.device = self.accelerator.device
        return device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context


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


def set_modes(module: nn.Module) -> None:
    """Put modules that hold training tensors in train mode and frozen ones in eval mode (DESIGN rule 4).

    Modules without parameters, dropout among them, follow the module that holds them.
    """
    module.training = any(parameter.requires_grad for parameter in module.parameters())
    for child in module.children():
        if next(child.parameters(), None) is None:
            child.train(module.training)
        else:
            set_modes(child)


def build_optimizer(model: nn.Module, recipe: TrainingSpec, learning_rate: float) -> torch.optim.Optimizer:
    """Return fused AdamW over exactly the tensors that require grad; no decay on norms and biases."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=True)


def learning_rate_scale(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the factor on the learning rate at `step` of `steps`: linear up, then linear down to zero."""
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


def train(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    batches: Sequence[Sequence[Item]],
    recipe: TrainingSpec,
    learning_rate: float,
    after_step: Callable[[int, float, Shape], None],
    *,
    constant_rate: bool = False,
) -> int:
    """Train on `batches`, one step each; return the bytes of the optimizer's state.

    `after_step(step, loss, shape)` is called after every step, counted from 1. Raises TrainingError when there is
    nothing to train or when the loss is not a number.
    """
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("no tensor requires grad: the method left nothing to train.")
    optimizer = build_optimizer(loaded.model, recipe, learning_rate)
    set_modes(loaded.model)
    for step, batch in enumerate(batches):
        scale = 1.0 if constant_rate else learning_rate_scale(step, len(batches), recipe.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        with engine.autocast():
            loss, shape = objective.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step + 1} of {len(batches)} (learning rate {learning_rate:g}). "
                "Lower the learning rate (--set training.learning_rate=…), or use precision fp32."
            )
        engine.accelerator.backward(loss)
        engine.accelerator.clip_grad_norm_(trained, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step + 1, value, shape)
    return state_bytes(optimizer)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors in an optimizer's state."""
    tensors = (v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def score(
    loaded: LoadedModel, objective: Objective, items: Sequence[Item], batch_size: int
) -> Iterator[tuple[list[tuple[int, list[float]]], Shape]]:
    """Yield, batch by batch, (index of item, log-likelihood of each choice) and the shape of the pass.

    Items are taken in order of length and scored in float32. The model is in eval mode meanwhile and back in its own
    modes afterwards.
    """
    modes = {name: module.training for name, module in loaded.model.named_modules()}
    loaded.model.eval()
    try:
        order = sorted(range(len(items)), key=lambda i: items[i].length)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # Never in bf16: rounded logits tie, and an exported model would not score the same psi.
            values, shape = objective.log_likelihoods([items[i] for i in chosen])
            yield list(zip(chosen, values, strict=True)), shape
    finally:
        for name, module in loaded.model.named_modules():
            module.training = modes[name]
