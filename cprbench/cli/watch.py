"""Progress of the verbs that make one file: a line that changes on a terminal, else a line now and then on stderr."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import typer

_SAY_EVERY_SECONDS = 10.0


class Watch:
    """Says what is about to be measured, then how far it is.

    `unit`: what is counted; `after`: said when all of them are done; `lost`: what Ctrl-C, or a scheduler's SIGTERM,
    leaves behind. It ends the process with code 130.
    """

    def __init__(self, what: str, unit: str, *, after: str = "", lost: str) -> None:
        self._what, self._unit, self._after, self._lost = what, unit, after, lost

    def __enter__(self) -> Watch:
        from rich.console import Console
        from rich.status import Status

        from cprbench.runs.diagnosis import announcement

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._console = Console(stderr=True, highlight=False, markup=False)
        live = self._console.is_terminal
        self._console.print(announcement(), soft_wrap=not live)
        self._console.print(f"measuring {self._what}", soft_wrap=not live)
        self._status = Status("starting", console=self._console) if live else None
        if self._status:
            self._status.start()
        self._said = time.monotonic()
        return self

    def observe(self, event: Mapping[str, Any]) -> None:
        """Take an event of the child."""
        if event["event"] != "progress":
            return
        line = f"{event['phase']}: {event['done']} of {event['of']} {self._unit}"
        if event["done"] == event["of"]:
            line += self._after
        if self._status:
            self._status.update(line)
        elif event["done"] == event["of"] or time.monotonic() - self._said > _SAY_EVERY_SECONDS:
            self._console.print(line, soft_wrap=True)
            self._said = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status:
            self._status.stop()
        if kind is KeyboardInterrupt:
            typer.echo(f"interrupted: {self._lost}.", err=True)
            raise typer.Exit(130)
