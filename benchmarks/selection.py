"""What choosing examples costs: exact J(z), predicted J(z), and a loop over batches of one. In this order of price.

    python -m benchmarks.selection      prints as its last line JSON; keys end in _<task>, without it the worst of both

MiniLM at a head that was warmed for 50 steps, the first 2,000 training examples of a task, interleaved, medians.
`speedup_vs_exact` is seconds of scoring them all exactly over seconds of Algorithm 2 as a run does it: exact J of 5 %
(at least 64), features of the rest, regression with five folds, prediction. `speedup_with_warm_up` adds the head's 50
steps to both sides: they are billed in a run, but count among its steps. `spearman` is over the examples whose J was
not measured; `within_class` is its mean inside classes; `of_loss` is the loss alone in place of a predictor. Memory is
peak resident memory above the loaded model and the tokenised examples, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gradients import _resident
from cprbench.adapt import data, models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.gradients import influence
from cprbench.adapt.gradients.measure import warm_head_on_sample
from cprbench.adapt.selection import Measured, Pool
from cprbench.adapt.selection.predicted import Predicted
from cprbench.adapt.selection.predictor import within_class
from cprbench.blueprint.drift import spearman
from cprbench.meters import hardware
from cprbench.sessions.worker import keep_freed_memory
from cprbench.tasks import load_task, training_for

_TASKS = ("movie-snippets", "banking77")
_LOOPED = 64  # examples of the loop: as many as tell its rate
_BATCH = 32


class Bench:
    """One task's pool with every way to score it."""

    def __init__(self, name: str, examples: int, *, warm: bool = True) -> None:
        task = load_task(name)
        recipe = training_for(task, {}, "benchmark")
        dataset = data.load_dataset(task)
        chosen = data.sample_by_label(dataset.train, examples, f"{name}/train")
        labels = len(dataset.choices or ())
        loaded = models.load(resolve("minilm", offline=False), labels, 0, "sdpa")
        engine = training.Engine.start("auto", bf16_is_fast=hardware.bf16_is_fast())
        loaded.model.to(engine.device)
        self.setting = (loaded, objectives.objective_for(loaded), engine)
        began = time.perf_counter()
        if warm:
            warm_head_on_sample(*self.setting, dataset.train, 50, recipe, 0, lambda *step: None)
        self.warm_seconds = time.perf_counter() - began
        self.items = objectives.tokenize(loaded, chosen, recipe.max_tokens)
        self.pool = Pool(
            ids=[example.id for example in chosen],
            labels=[example.reference for example in chosen],
            texts=[example.prompt for example in chosen],
            lengths=[item.length for item in self.items],
            seed=0,
            sizes=loaded.partition.sizes,
            measure=self.measure,
            input_means=lambda places: influence.input_means(loaded, [self.items[i] for i in places]),
        )

    def measure(self, places: Sequence[int], **what: bool) -> Measured:
        items = [self.items[i] for i in places]
        return influence.measure(*self.setting, items, _BATCH, lambda *seen: None, **what)

    def exact(self) -> Any:
        return self.measure(range(len(self.items))).influence

    def forward(self) -> Any:
        return Predicted(features="forward").scores(self.pool)

    def cheap(self) -> Any:
        return Predicted(features="cheap").scores(self.pool)

    def loop(self) -> Any:
        """Score a few examples as LESS and its kin do without an engine: a backward pass each, over all weights."""
        loaded, objective, engine = self.setting
        loaded.model.requires_grad_(True)
        loaded.model.eval()
        found = []
        for item in self.items[:: max(1, len(self.items) // _LOOPED)][:_LOOPED]:
            with engine.autocast():
                loss, _ = objective.loss([item])
            loss.backward()  # type: ignore[no-untyped-call]
            named = dict(loaded.model.named_parameters())
            own = [named[name].grad for names in loaded.partition.parameters.values() for name in names]
            found.append(sum(float(g.square().sum()) for g in own if g is not None) ** 0.5)
            loaded.model.zero_grad(set_to_none=True)
        return found


def measure(task: str, examples: int, repeats: int) -> dict[str, float]:
    """Return what one task shows."""
    bench = Bench(task, examples)
    ways: dict[str, Callable[[], Any]] = {
        "exact": bench.exact, "forward": bench.forward, "cheap": bench.cheap, "loop": bench.loop
    }  # fmt: skip
    count = {name: len(bench.items) for name in ways} | {"loop": len(bench.loop())}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    given: dict[str, Any] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            given[name] = way()
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    exact = given["exact"]
    losses = bench.measure(range(len(bench.items)), gradients=False).losses
    some = np.array([exact[i] for i in range(0, len(exact), max(1, len(exact) // _LOOPED))][:_LOOPED])
    error = float(np.abs(np.array(given["loop"]) / some - 1).max())
    print(f"{task}: {len(bench.items)} examples, {bench.setting[2].precision}; loop and exact differ by {error:.1e}")
    found: dict[str, float] = {}
    few = set(Predicted().few(bench.pool))
    rest = [i for i in range(len(bench.items)) if i not in few]
    classes = [bench.pool.labels[i] for i in rest]
    found["spearman_of_loss"] = spearman(losses[rest].tolist(), exact[rest].tolist()) or 0.0
    found["within_class_of_loss"] = within_class(losses[rest], exact[rest], classes) or 0.0
    for name in ("forward", "cheap"):
        scores, notes = given[name]
        predicted = np.array(scores)[rest]
        found[f"{name}_predicted_spearman"] = spearman(predicted.tolist(), exact[rest].tolist()) or 0.0
        found[f"{name}_within_class"] = within_class(predicted, exact[rest], classes) or 0.0
        found[f"{name}_said_spearman"] = notes["spearman"] or 0.0  # what the run would have known: out of fold
        found[f"{name}_predicted_speedup_vs_exact"] = median["exact"] / median[name]
        exactly, predicting = (seconds + bench.warm_seconds for seconds in (median["exact"], median[name]))
        found[f"{name}_speedup_with_warm_up"] = exactly / predicting
    found["exact_speedup_vs_loop"] = median["loop"] / count["loop"] / (median["exact"] / count["exact"])
    for name in ways:
        found[f"{name}_examples_per_second"] = count[name] / median[name]
        found[f"{name}_memory_mb"] = peak(name, task, examples) / 1e6
    for name, value in found.items():
        print(f"  {name:<36} {value:.3g}")
    return found


def peak(way: str, task: str, examples: int) -> float:
    """Return the peak resident bytes of a way above what was there before, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.selection", "--peak", way, "--tasks", task]
    done = subprocess.run([*command, "--examples", str(examples)], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table per task and, as the last line, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", default=",".join(_TASKS))
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=("exact", "forward", "cheap", "loop"))
    given = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    if given.peak:
        bench = Bench(given.tasks, given.examples, warm=False)  # whose freed memory would be used again, unseen
        before = _resident("VmRSS")
        getattr(bench, given.peak)()
        print(max(0.0, _resident("VmHWM") - before))
        return
    found = {task: measure(task, given.examples, given.repeats) for task in given.tasks.split(",")}
    worst = {
        key: (max if key.endswith(("memory_mb", "of_loss")) else min)(values[key] for values in found.values())
        for key in next(iter(found.values()))
    }
    by_task = {f"{key}_{task}": value for task, values in found.items() for key, value in values.items()}
    rounded = {key: round(value, 4) for key, value in {**worst, **by_task}.items()}
    print(json.dumps({**rounded, "repeats": given.repeats, "hardware_class": hardware.cpu_class()}))


if __name__ == "__main__":
    main()
