"""Processes that take turns, and what each of them trains: for benchmarks that compare loops or methods.

Noise of a shared machine hits all sides alike when every step of one is followed by a step of each other. Memory
allocators cannot be set back, and peaks are of a process: so every side is one, blocked while it is not its turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

#: What a run's child has: threads that spin at a barrier take the core from the others.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "TOKENIZERS_PARALLELISM": "false"}


class Gate:
    """A worker's end of the line: its clock runs only between the parent's "go" and its own answer."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)  # what libraries print is no answer
        self.seconds = self._since = 0.0

    def start(self) -> None:
        """Set the clock to zero."""
        self.seconds, self._since = 0.0, time.perf_counter()

    def tick(self, *_: Any) -> None:
        """Let the others take their turns."""
        self.seconds += time.perf_counter() - self._since
        self.say(done=False)
        self.wait()

    def say(self, **what: Any) -> None:
        """Answer the parent."""
        self._out.write(json.dumps(what) + "\n")

    def wait(self) -> None:
        """Block until it is this worker's turn; the process ends where its parent has closed the line."""
        if not sys.stdin.readline():
            os._exit(0)
        self._since = time.perf_counter()


def serve(round_of: Callable[[Gate, bool], Mapping[str, Any]], gate: Gate) -> None:
    """Run rounds for the parent, for ever: `round_of(gate, is the first one)`."""
    first = True
    while True:
        gate.wait()
        found = round_of(gate, first)
        gate.say(done=True, seconds=gate.seconds, **found)
        first = False


class Worker:
    """A process that takes turns: `python -m <words>`, with the environment of a run's child."""

    def __init__(self, *words: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=ENVIRONMENT,
        )

    def turn(self) -> dict[str, Any]:
        """Let it work until it answers."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise SystemExit(f"a worker died:\n{self._errors.read()[-2000:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def race(workers: Mapping[str, Worker]) -> dict[str, dict[str, Any]]:
    """Run one round of all workers, a step of each in turn, and return what each of them tells at its end."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < len(workers):
        for name, worker in workers.items():
            if name not in found and (answer := worker.turn())["done"]:
                found[name] = answer
    return found


class Setting:
    """A task's examples and a loaded model, for whichever loop. The method is not in the model yet."""

    def __init__(self, alias: str, method: str, examples: int, settings: Mapping[str, Any] | None = None) -> None:
        from cprbench.adapt import data, devices, models, objectives
        from cprbench.adapt.checkpoints import resolve
        from cprbench.adapt.methods import build_method
        from cprbench.tasks import load_task, training_for

        encoder = alias == "minilm"
        task = load_task("movie-snippets" if encoder else "pubmedqa")
        recipe = {"precision": "fp32", **({} if encoder else {"max_tokens": 192})}
        self.recipe = training_for(task, recipe, "benchmark")
        dataset = data.load_dataset(task)
        self.checkpoint = resolve(alias, offline=False)
        self.labels = len(dataset.choices or ()) if encoder else None
        self.loaded: Any = models.load(self.checkpoint, self.labels, 0, "sdpa")
        self.objective = objectives.objective_for(self.loaded)
        self.engine = devices.Engine.start("fp32", bf16_is_fast=False)
        chosen = data.sample_by_label(dataset.train, examples, f"{task.name}/train")
        self.items = objectives.tokenize(self.loaded, chosen, self.recipe.max_tokens)
        self.method = build_method(method, settings or {})
        self.rate = self.method.learning_rates["encoder" if encoder else "causal"]

    def adapt(self) -> Any:
        """Put the method into the model."""
        from cprbench.adapt.methods import Context

        return self.method.prepare(self.loaded, Context(0))

    def batches(self, items: Sequence[Any], epochs: int = 1) -> list[list[Any]]:
        """Return the batches of a run of ours."""
        from cprbench.adapt.training import plan_batches

        plan = plan_batches([item.length for item in items], self.recipe.batch_size, epochs, 0)
        return [[items[i] for i in batch] for batch in plan]

    def train(self, batches: Sequence[Sequence[Any]], after_step: Callable[..., None], **cache: Any) -> None:
        """Train with our loop. `cache`: of the frozen layers, as `training.train` takes it."""
        from cprbench.adapt.training import train

        train(self.loaded, self.objective, self.engine, batches, self.recipe, self.rate, after_step, **cache)

    def flops(self, cells: Sequence[str], adapters: Any, shapes: Sequence[Any]) -> int:
        """Return the FLOPs of training passes of these shapes."""
        from cprbench.meters.flops import Pass, Trained, count, sizes

        passes = [Pass(phase="train", attempt=1, backward=True, trains="method", **asdict(s)) for s in shapes]
        trained = Trained(frozenset(cells), self.labels is not None, adapters)
        found = count(sizes(self.checkpoint.config), self.checkpoint.kind, self.labels, trained, passes)
        return sum(value.total for value in found.values())
