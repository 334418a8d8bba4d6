"""What the frozen layers below the lowest trained one give: computed once per example, kept, and read again.

No weight below that layer moves and no dropout runs there, so an example's states at its input are the same in every
epoch. The paper takes forward passes to cost the same whatever trains (section 4.1); with this they do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import psutil
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cprbench.adapt.models import LoadedModel, first_trained_layer, layers_of
from cprbench.adapt.objectives import Item, Objective
from cprbench.spec import TrainingSpec

#: The most that is kept, in bytes, and never more than a quarter of what the machine has free.
_MOST_MEMORY, _MOST_DISK, _SHARE = 2 << 30, 16 << 30, 4


#: Builds in which every layer runs once, in order, and nothing of cell `head` before them (tests/adapt/test_prefix.py).
#: Elsewhere a projection may stand before the layers, or one layer run many times, and kept states would be wrong.
_TRIED = (
    *("bert", "camembert", "distilbert", "gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3", "roberta"),
    "xlm-roberta",
)


@dataclass(frozen=True)
class Room:
    """How many bytes of states one process may keep, in memory (the device's, on a GPU) and on disk."""

    memory: int
    disk: int

    @classmethod
    def here(cls, device: torch.device, folder: Path, processes: int = 1) -> Room:
        """Return the room that this machine has now."""
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else _free_memory() // processes
        disk = psutil.disk_usage(str(folder)).free // processes
        return cls(min(_MOST_MEMORY, free // _SHARE), min(_MOST_DISK, disk // _SHARE))


def _free_memory() -> int:
    """Return the bytes that may still be taken: of the machine, and of its control group where that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii") for name in ("max", "current"))
        return max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free


@dataclass(frozen=True)
class CachePlan:
    """Where states at the input of `first_layer` are kept. `room`: bytes; `why`: nothing is kept."""

    mode: Literal["memory", "disk", "off"]
    first_layer: int
    bytes_per_token: int = 0
    bf16: bool = False
    room: int = 0
    why: str = ""

    @classmethod
    def off(cls, why: str = "") -> CachePlan:
        """Return the plan that keeps nothing: every pass begins at the input."""
        return cls("off", 0, why=why)

    def told(self) -> dict[str, str | int]:
        """Return what a record says of it."""
        if self.mode == "off":
            return {"mode": "off", "why": self.why}
        return {"mode": self.mode, "first_layer": self.first_layer, "bytes_per_token": self.bytes_per_token}


def plan_cache(
    loaded: LoadedModel,
    objective: Objective,
    batches: Sequence[Sequence[Item]],
    recipe: TrainingSpec,
    room: Room,
    *,
    bf16: bool,
) -> CachePlan:
    """Return what training on `batches` should keep (`training.cache_prefix`).

    auto: memory where all states fit its room, else disk, else nothing. memory and disk keep what fits; the rest is
    computed in every epoch. Under bf16 states are kept in bf16, the precision in which the next product reads them.
    """
    wanted, first = recipe.cache_prefix, first_trained_layer(loaded)
    if wanted == "off":
        return CachePlan.off("training.cache_prefix = off")
    if first == 0:
        return CachePlan.off("the backward pass reaches the first layer")
    build = str(loaded.model.config.model_type)  # type: ignore[union-attr]
    if build not in _TRIED:
        return CachePlan.off(f"model_type {build!r}: states of its layers have not been tried")
    if recipe.compile:
        return CachePlan.off("training.compile: a compiled model begins at its input")
    items = {id(item): item for batch in batches for item in batch}
    if len(items) == sum(map(len, batches)):
        return CachePlan.off("every example is trained on once")
    width = int(loaded.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    per_token = width * (2 if bf16 else 4)
    needed = per_token * sum(objective.lengths(list(items.values())))
    if wanted == "memory" or (wanted == "auto" and needed <= room.memory):
        return CachePlan("memory", first, per_token, bf16, room.memory)
    if wanted == "disk" or needed <= room.disk:
        return CachePlan("disk", first, per_token, bf16, room.disk)
    return CachePlan.off(f"{needed} bytes of states, more than there is room for ({room.disk} bytes on disk)")


class Prefix:
    """The layers below `plan.first_layer` and what they gave, by example.

    `with prefix.resumed(states): objective.losses(items)` runs the layers above alone.
    """

    def __init__(self, loaded: LoadedModel, objective: Objective, plan: CachePlan, folder: Path) -> None:
        self._objective = objective
        self._below = layers_of(loaded.model)[: plan.first_layer]
        self._bf16 = plan.bf16
        self._kept: _InMemory | _OnDisk = _OnDisk(folder) if plan.mode == "disk" else _InMemory()
        self._as_tuple, self._dtype = False, torch.float32  # how these layers give their states

    def __enter__(self) -> Prefix:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.close()

    def states(self, items: Sequence[Item], fresh: Sequence[Item], keep: Sequence[Item]) -> list[Tensor]:
        """Return each item's states, (length, width); `fresh` go through the layers now, of them `keep` stay."""
        new: dict[int, Tensor] = {}
        if fresh:
            hidden = self._run(fresh)
            for row, (item, length) in enumerate(zip(fresh, self._objective.lengths(fresh), strict=True)):
                new[id(item)] = hidden[row, :length]
            for item in keep:
                self._kept.put(id(item), new[id(item)])
        return [new[id(item)] if id(item) in new else self._kept.get(id(item)) for item in items]

    @torch.no_grad()
    def _run(self, items: Sequence[Item]) -> Tensor:
        """Return the states of a batch below, (batch, length, width); nothing above the layers runs."""

        def stop(module: Any, inputs: Any, output: Any) -> None:
            raise _ReachedError(output)

        handle = self._below[-1].register_forward_hook(stop)
        try:
            self._objective.losses(items)
        except _ReachedError as reached:
            output = reached.args[0]
        finally:
            handle.remove()
        self._as_tuple = isinstance(output, tuple)
        hidden: Tensor = output[0] if self._as_tuple else output
        self._dtype = hidden.dtype
        return hidden.to(torch.bfloat16) if self._bf16 else hidden

    @contextmanager
    def resumed(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Let the layers below hand on `states` in place of what they would compute, inside `with`."""
        device = next(self._objective.model.parameters()).device
        given = pad_sequence([state.to(device) for state in states], batch_first=True).to(self._dtype)

        def hand_on(hidden: Tensor) -> Any:
            return (hidden,) if self._as_tuple else hidden

        def through(*args: Any, **kwargs: Any) -> Any:
            return hand_on(args[0] if args else kwargs["hidden_states"])

        for layer in self._below:
            layer.forward = through
        self._below[-1].forward = lambda *args, **kwargs: hand_on(given)
        try:
            yield
        finally:
            for layer in self._below:
                del layer.forward  # what was set on the instance; its class has its own


class _ReachedError(Exception):
    """The layers below are done; it carries what they gave."""


class _InMemory:
    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}

    def put(self, key: int, states: Tensor) -> None:
        self._states[key] = states.clone()  # a view would hold the whole batch

    def get(self, key: int) -> Tensor:
        return self._states[key]

    def close(self) -> None:
        self._states.clear()


class _OnDisk:
    """One nameless file, read and written at offsets: it is no part of the process's memory and goes with it."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._where: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0

    def put(self, key: int, states: Tensor) -> None:
        data = states.contiguous().cpu().view(torch.uint8).numpy().tobytes()
        written = 0
        while written < len(data):  # a disk that fills up takes a part first, and says so the next time
            written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        self._where[key] = (self._end, states.shape, states.dtype)
        self._end += len(data)

    def get(self, key: int) -> Tensor:
        start, shape, dtype = self._where[key]
        data = bytearray(os.pread(self._file.fileno(), shape.numel() * dtype.itemsize, start))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def close(self) -> None:
        self._file.close()
