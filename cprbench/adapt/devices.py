"""Device, precision and processes of a run, the same for all arms (accelerate decides what this machine has)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

from cprbench.adapt.objectives import Item, Objective
from cprbench.errors import TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """Where a run computes. All its processes run the same code: what one of them skips, all of them skip."""

    accelerator: Accelerator
    precision: str

    @classmethod
    def start(cls, precision: str, *, bf16_is_fast: bool) -> Engine:
        """Return an engine; precision "auto" is bf16 where the hardware multiplies it natively, else fp32.

        Raises TrainingError where the environment asks accelerate for FSDP.
        """
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            raise TrainingError(
                "ACCELERATE_USE_FSDP = true: sharded parameters (FSDP) are not supported; --processes trains by DDP. "
                "Unset it."
            )
        on_gpu = torch.cuda.is_available()
        if precision == "auto":
            fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bf16_is_fast
            precision = "bf16" if fast else "fp32"
        # The others wait while the first one measures, which may take hours; the parent ends them all if one dies.
        patient = InitProcessGroupKwargs(timeout=timedelta(days=30))
        mixed = "bf16" if precision == "bf16" else "no"
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=mixed, kwargs_handlers=[patient])
        return cls(accelerator, precision)

    @property
    def device(self) -> torch.device:
        """The device on which models run."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def processes(self) -> int:
        """How many processes train this model together."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Which of them this is; 0 talks to the parent and writes files."""
        return int(self.accelerator.process_index)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def first(self, work: Callable[[], T]) -> T:
        """Let process 0 do something that all need the same answer to; what it raises, all raise."""
        if self.processes == 1:
            return work()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = work()
            except Exception as error:
                box[1] = error
        broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        answer: T = box[0]
        return answer

    def gather(self, part: T) -> list[T]:
        """Return every process's part, in their order."""
        return [part] if self.processes == 1 else list(gather_object([part]))

    def sum(self, value: Tensor) -> float:
        """Return the sum of a scalar over all processes."""
        return float(value if self.processes == 1 else self.accelerator.reduce(value, "sum"))

    def in_step(self, objective: Objective) -> Callable[[Sequence[Item]], Tensor]:
        """Return the losses of examples as a training step computes them: gradients are averaged over processes."""
        step = _Step(objective)
        wrapped: Callable[[Sequence[Item]], Tensor] = step if self.processes == 1 else self.accelerator.prepare(step)
        return wrapped


class _Step(nn.Module):
    """A module whose forward pass is an objective's, so that what wraps it sees every pass of training."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = objective

    def forward(self, items: Sequence[Item]) -> Tensor:
        return self._objective.losses(items)[0]
