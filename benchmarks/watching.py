"""What `cprbench.blueprint.watch` adds to a validation loop, and how little sampling keeps its ranks.

    python -m benchmarks.watching       prints as its last line JSON: overhead_percent at the sampling with the least
                                        overhead whose Spearman with the full pass is at least 0.95

MiniLM on movie-snippets, its head warmed up; the loop scores `batches` batches of 32 under no_grad. The full pass is
the definition: the median over all batches of 32 of the norm of the batch-mean gradient. Every sampling runs over the
loop in several orders; Spearman is the least of them. Overhead is by wall time, loops with and without the watch in
turns, the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

import cprbench.blueprint
from cprbench.adapt import data, models, objectives, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.gradients.measure import submodule_norms, warm_head
from cprbench.blueprint.drift import spearman
from cprbench.meters import hardware
from cprbench.sessions.worker import keep_freed_memory
from cprbench.spec import TrainingSpec
from cprbench.tasks import load_task

#: (every, examples) by rising cost.
_SAMPLINGS = ((64, 8), (32, 8), (32, 16), (16, 16), (8, 16), (8, 32))


class Loop:
    """A validation loop as people write it, over tensors that are ready."""

    def __init__(self, batches: int) -> None:
        dataset = data.load_dataset(load_task("movie-snippets"))
        self.loaded = models.load(resolve("minilm", offline=False), 2, 0, "sdpa")
        self.model = self.loaded.model.eval()
        self.objective = objectives.objective_for(self.loaded)
        self.engine = training.Engine.start("fp32", bf16_is_fast=False)
        items = objectives.tokenize(self.loaded, [*dataset.train, *dataset.validation, *dataset.test], 48)
        random.Random(0).shuffle(items)
        recipe = TrainingSpec()
        warm = [items[i : i + 16] for i in range(0, 800, 16)]
        warm_head(self.loaded, self.objective, self.engine, warm, recipe, lambda step, loss, shape: None)
        self.chunks = [items[i : i + 32] for i in range(800, 800 + 32 * batches, 32)]
        self.tensors = [self._tensors(chunk) for chunk in self.chunks]

    def _tensors(self, items: Sequence[Any]) -> dict[str, Any]:
        padded = self.loaded.tokenizer.pad({"input_ids": [list(i.ids) for i in items]}, return_tensors="pt")
        return {**padded, "labels": torch.tensor([item.answer for item in items])}

    def full(self) -> dict[str, float]:
        return submodule_norms(self.loaded, self.objective, self.engine, self.chunks, lambda shape, extra: None)

    @torch.no_grad()
    def run(self, order: Sequence[int]) -> float:
        """Return the mean loss over the batches."""
        losses = []
        for index in order:
            batch = self.tensors[index]
            logits = self.model(**batch).logits
            losses.append(float(functional.cross_entropy(logits, batch["labels"])))
        return statistics.fmean(losses)


def main() -> None:
    """Find the sampling, measure its overhead, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--orders", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    keep_freed_memory()
    loop = Loop(given.batches)
    full = loop.full()
    loop.model.requires_grad_(False)
    orders = [random.Random(seed).sample(range(len(loop.tensors)), len(loop.tensors)) for seed in range(given.orders)]
    found: dict[str, Any] = {"spearman": None, "overhead_percent": None}
    for every, examples in _SAMPLINGS:
        correlations, seconds, total = [], 0.0, 0.0
        for order in orders:
            with cprbench.blueprint.watch(loop.model, every=every, examples=examples) as watched:
                began = time.perf_counter()
                loop.run(order)
                total += time.perf_counter() - began
            correlations.append(spearman(list(full.values()), list(watched.norms().values())) or 0.0)
            seconds += watched.seconds
        share = 100 * seconds / (total - seconds)
        worst = f"Spearman {min(correlations):.3f} (least of {len(orders)})"
        print(f"every {every}, {examples} examples: {worst}, probes {share:.2f} %")
        if min(correlations) >= 0.95:  # samplings are in order of cost
            found |= {"every": every, "examples": examples, "spearman": round(min(correlations), 4), "share": share}
            break
    if found["spearman"] is not None:
        ratios = []
        for pair in range(given.pairs):
            took = {}
            for watch in (pair % 2 == 0, pair % 2 == 1):
                began = time.perf_counter()
                if watch:
                    with cprbench.blueprint.watch(loop.model, every=found["every"], examples=found["examples"]):
                        loop.run(orders[0])
                else:
                    loop.run(orders[0])
                took[watch] = time.perf_counter() - began
            ratios.append(took[True] / took[False])
        found |= {"overhead_percent": round(100 * (statistics.median(ratios) - 1), 2)}
        found["probe_percent"] = round(found.pop("share"), 2)
    print(json.dumps({**found, "batches": given.batches, "hardware_class": hardware.cpu_class()}))


if __name__ == "__main__":
    main()
