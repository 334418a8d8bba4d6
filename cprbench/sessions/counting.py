"""The passes of one attempt as they run: a line of work.jsonl each, and the FLOPs billed so far."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cprbench.meters.flops import Flops, Pass, Trained, Trains, count, supported
from cprbench.spec import ModelRef, Phase, Reading

if TYPE_CHECKING:
    from cprbench.adapt.objectives import Work


class Counter:
    """Counts what a session computes. `new_head`: whether the model has one; `labels`: its outputs.

    `billed`: the phases whose passes add up.
    """

    def __init__(
        self,
        path: Path,
        model: ModelRef,
        labels: int | None,
        attempt: int,
        *,
        new_head: bool,
        billed: Collection[Phase],
    ) -> None:
        self._billed = billed
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._model, self._labels, self._attempt, self._new_head = model, labels, attempt, new_head
        self.trained: Trained | None = None  # what the method trains, once it is in the model
        self.uncounted = supported(model.config)  # why there is no count
        self.spent = Flops()  # billed so far, what was taken over from earlier runs included

    def enter(self, phase: Phase, trains: Trains, work: Work, *, extra: int = 0) -> None:
        """Write down a pass and, where its phase is billed, add it up. `extra`: FLOPs beside the model's own."""
        trains = trains if self.trained is not None or trains != "method" else "nothing"
        done = self.pass_of(work, phase, trains)
        if self.uncounted is None:
            extra += self._adapters(done) * {"method": 0, "activations": 2}.get(trains, 1)
        done = replace(done, extra_flops=extra)
        self._file.write(done.line() + "\n")
        if phase in self._billed:
            self.spent += self.of([done])

    def pass_of(self, work: Work, phase: Phase, trains: Trains) -> Pass:
        """Return the line of work.jsonl for a pass."""
        fields = asdict(work)
        return Pass(phase=phase, attempt=self._attempt, trains=trains, **fields.pop("shape"), **fields)

    def of(self, passes: Iterable[Pass], trained: Trained | None = None) -> Flops:
        """Return the FLOPs of passes, by default of what the method trains; none without a count."""
        if self.uncounted is not None:
            return Flops()
        trained = trained or self.trained or Trained(frozenset(), self._new_head)
        found = count(self._model.config, self._model.kind, self._labels, trained, passes)
        return sum(found.values(), Flops())

    def _adapters(self, done: Pass) -> int:
        """Return the FLOPs of a forward pass through the method's adapters: once they are in, every pass has it."""
        if self.trained is None or self.trained.lora is None:
            return 0
        forward = replace(done, backward=False, trains="method")
        return self.of([forward]).total - self.of([forward], Trained(frozenset(), self.trained.new_head)).total

    def bill_again(self, readings: Sequence[Reading]) -> float:
        """Add what an earlier run measured to this account; return its seconds."""
        seconds = 0.0
        for reading in readings:
            if reading.phase == "select" and reading.value is not None:
                if reading.quantity == "flops":
                    self.spent += Flops(int(reading.value), int(reading.detail.get("padding", 0)))
                if reading.quantity == "seconds":
                    seconds += reading.value
        return seconds
