"""Live progress on stderr with the time left; plain lines where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from cprbench.runs.planner import Planned

#: How much of a run is over when a phase ends: a rough guide for the bar, not a measurement.
_SHARE = {"setup": 0.1, "base": 0.25, "train": 0.85, "score": 1.0}


class Progress:
    """Shows which run is under way, its step and loss, and the time left for all runs."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=18),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bar = RichProgress(*columns, console=self._console, transient=True, disable=not self._live)
        self._task: Any = None
        self._total = 0
        self._done = 0
        self._fraction = 0.0
        self._busy_seconds = 0.0
        self._began = 0.0
        self._trained = False

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task("looking at data and models", total=1.0, detail="", left="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def announce(self, runs: Sequence[Planned]) -> None:
        """Say what is about to be run."""
        from cprbench.runs.diagnosis import announcement

        if not self._total:
            self._console.print(announcement(), highlight=False, markup=False, soft_wrap=not self._live)
        self._total, self._done = len(runs), 0
        arms = list(dict.fromkeys(run.arm for run in runs))
        blocks = len({run.block for run in runs})
        what = "learning-rate trials" if runs and runs[0].role == "search" else "runs"
        names = ", ".join(arms[:8]) + ("…" if len(arms) > 8 else "")
        self._console.print(
            f"{len(runs)} {what}: {names}; {blocks} block(s)", highlight=False, markup=False, soft_wrap=not self._live
        )

    def observe(self, planned: Planned, event: Mapping[str, Any]) -> None:
        """Take an event of a run."""
        match event["event"]:
            case "run":
                self._began, self._fraction, self._trained = time.monotonic(), 0.0, False
                self._show(planned, "starting")
            case "start":
                self._fraction = max(self._fraction, _SHARE["setup"] if event["phase"] != "setup" else 0.0)
                self._show(planned, event["phase"])
            case "progress" if event["phase"] == "score":
                low, high = ("train", "score") if self._trained else ("setup", "base")
                self._move(low, high, event["done"] / event["of"])
                self._show(planned, f"score {event['done']}/{event['of']}")
            case "step":
                self._trained = True
                self._move("base", "train", event["step"] / event["of"])
                self._show(planned, f"step {event['step']}/{event['of']} loss {event['loss']:.3f}")
            case "done":
                self._finish(planned, event)

    def _move(self, low: str, high: str, share: float) -> None:
        self._fraction = _SHARE[low] + share * (_SHARE[high] - _SHARE[low])

    def _finish(self, planned: Planned, event: Mapping[str, Any]) -> None:
        record = event["record"]
        self._done += 1
        if not event["reused"]:
            self._busy_seconds += time.monotonic() - self._began
        self._fraction = 0.0
        final = (record.psi.final or {}).get(record.psi.primary)
        score = f" {record.psi.primary} {final:.3f}" if final is not None else ""
        how = "reused" if event["reused"] else f"{record.seconds['billed']:.1f} s billed"
        line = f"[{self._done}/{self._total}] {planned.arm}, block {planned.block}: {record.status}{score}, {how}"
        if not self._live or record.status != "ok":
            self._console.print(f"{line}{self._left()}", highlight=False, markup=False, soft_wrap=not self._live)
        self._show(planned, "")

    def _left(self) -> str:
        """Return the time left, from the runs that were really run so far."""
        running = time.monotonic() - self._began if self._fraction else 0.0
        over = self._done + self._fraction
        spent = self._busy_seconds + running
        if not spent or over < 0.15 or over >= self._total:
            return ""
        seconds = round(spent / over * (self._total - over))
        return f", {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, planned: Planned, detail: str) -> None:
        if self._task is None:
            return
        name = f"[{min(self._done + 1, self._total)}/{self._total}] {planned.arm} b{planned.block}"
        completed = (self._done + self._fraction) / max(1, self._total)
        self._bar.update(
            self._task, description=name, completed=completed, detail=detail, left=self._left().lstrip(", ")
        )
