"""Which process trains which examples of a batch, and what passes that takes: asked before a run and in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cprbench.adapt.objectives import Item, Objective, Work
from cprbench.adapt.prefix import CachePlan


@dataclass(frozen=True)
class Share:
    """One process's part of a batch. `idle`: it only keeps step, its loss does not count."""

    items: list[Item]
    fresh: list[Item] = field(default_factory=list)  # of these the frozen layers have to run
    keep: list[Item] = field(default_factory=list)  # and of these their states stay
    idle: bool = False


class Schedule:
    """Deals batches out. An example stays with the process that saw it first, since its states are there."""

    def __init__(
        self,
        objective: Objective,
        cache: CachePlan,
        *,
        layers: int = 0,
        recompute_from: int | None = None,
        processes: int = 1,
    ) -> None:
        """`layers` of the model; `recompute_from`: the first layer that gradient checkpointing repeats, or None."""
        self._objective = objective
        self._cache = cache
        self._layers, self._recompute_from = layers, recompute_from
        self._owner: dict[int, int] = {}
        self._held: set[int] = set()
        self._free = [cache.room] * processes

    def shares(self, batch: Sequence[Item]) -> list[Share]:
        """Return every process's part of the next batch, in the batch's order."""
        dealt: list[list[Item]] = [[] for _ in self._free]
        most = math.ceil(len(batch) / len(dealt))
        place = {id(item): index for index, item in enumerate(batch)}
        homeless = []
        for item in batch:
            owner = self._owner.get(id(item))
            if owner is None or len(dealt[owner]) == most:
                homeless.append(item)
            else:
                dealt[owner].append(item)
        for item in homeless:
            rank = min(range(len(dealt)), key=lambda rank: len(dealt[rank]))
            self._owner.setdefault(id(item), rank)
            dealt[rank].append(item)
        found = []
        for rank, items in enumerate(dealt):
            items.sort(key=lambda item: place[id(item)])
            found.append(self._share(rank, items) if items else Share([batch[0]], idle=True))
        return found

    def _share(self, rank: int, items: list[Item]) -> Share:
        if self._cache.mode == "off":
            return Share(items)
        fresh = [item for item in items if id(item) not in self._held or self._owner[id(item)] != rank]
        keep = []
        for item, length in zip(fresh, self._objective.lengths(fresh), strict=True):
            size = length * self._cache.bytes_per_token
            if id(item) not in self._held and self._owner[id(item)] == rank and size <= self._free[rank]:
                self._free[rank] -= size
                self._held.add(id(item))
                keep.append(item)
        return Share(items, fresh, keep)

    def work(self, share: Share) -> Iterator[Work]:
        """Yield the passes that a share takes, in the order in which they run."""
        objective, first = self._objective, self._cache.first_layer
        if share.fresh:
            yield Work(objective.shape(share.fresh), backward=False, last_layer=first)
        shape = objective.shape(share.items)
        yield Work(shape, first_layer=0 if share.idle else first)
        if self._recompute_from is not None and self._recompute_from < self._layers:
            yield Work(shape, backward=False, first_layer=self._recompute_from, last_layer=self._layers, recompute=True)

    def works(self, batch: Sequence[Item]) -> list[Work]:
        """Return the passes of all processes on the next batch."""
        return [work for share in self.shares(batch) for work in self.work(share)]
