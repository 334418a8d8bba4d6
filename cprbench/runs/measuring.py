"""What a method may ask to be measured before it chooses: gradient norms, the seconds of a step, memory so far.

In the child, inside phase `select`: every pass is counted and every second billed.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cprbench.adapt.gradients.measure import submodule_norms, warm_head
from cprbench.adapt.gradients.steps import probe_sets, step_cost, time_steps
from cprbench.adapt.methods import Context, Probe, Target
from cprbench.adapt.objectives import Item, Shape
from cprbench.blueprint.schema import StepCost
from cprbench.meters.flops import Pass, Trained, pass_flops, supported
from cprbench.spec import stream_seed


class Measuring:
    """The measurements of one run. `session`: worker.Session, whose batches and accounts they use."""

    def __init__(self, session: Any, items: Sequence[Item]) -> None:
        self._session = session
        self._items = items
        self._setting = (session.loaded, session.objective, session.engine)

    def context(self) -> Context:
        """Return what a method's `prepare` is given."""
        spec, partition = self._session.spec, self._session.loaded.partition
        model, recipe = spec.model, spec.training
        return Context(
            seed=spec.seed,
            target=Target(
                model.kind,
                partition.sizes,
                partition.parameters,
                model.weights_sha256,
                model.revision,
                model.label,
                Probe(recipe.select_batch_size, recipe.select_warmup_steps),
            ),
            measure_norms=self.norms,
            measure_step=self.step,
            memory_bytes=peak_memory_bytes,
        )

    def norms(self) -> dict[str, float]:
        """Warm the new head, if there is one, then measure gradient norms on random training batches."""
        session, recipe = self._session, self._session.recipe
        if session.loaded.partition.new_head and recipe.select_warmup_steps:
            torch.manual_seed(stream_seed(session.spec.seed, "warm-up"))
            batches = session.batches[: recipe.select_warmup_steps]
            warm_head(*self._setting, batches, recipe, session.after_step("select", "head"))
        draw = random.Random(stream_seed(session.spec.seed, "probe"))
        size = min(len(self._items), recipe.select_batches * recipe.select_batch_size)
        chosen = draw.sample(list(self._items), size)
        step = recipe.select_batch_size
        probes = [chosen[i : i + step] for i in range(0, size, step)]

        def observe(shape: Shape, extra: int) -> None:
            session.count("select", "all", shape, backward=True, extra=extra)

        return submodule_norms(*self._setting, probes, observe)

    def step(self) -> StepCost:
        """Time steps that train a few small sets, on the batch of median length."""
        session, sizes = self._session, self._session.loaded.partition.sizes
        shapes: list[Shape] = []

        def observe(cells: Sequence[str], shape: Shape) -> None:
            shapes.append(shape)
            session.count("select", "nothing", shape, backward=False, extra=self._beyond_forward(cells, shape))

        batch = sorted(session.batches, key=lambda batch: max(item.length for item in batch))[len(session.batches) // 2]
        sets = probe_sets(sizes)
        return step_cost(sets, time_steps(*self._setting, batch, sets, session.recipe, observe), sizes, shapes[0])

    def _beyond_forward(self, cells: Sequence[str], shape: Shape) -> int:
        """Return the FLOPs of a step that trains `cells` beyond those of its forward pass."""
        model, loaded = self._session.spec.model, self._session.loaded
        if supported(model.config) is not None:
            return 0
        trained = Trained(frozenset(cells), bool(loaded.partition.new_head))
        step, forward = (
            pass_flops(
                model.config,
                model.kind,
                loaded.labels,
                trained,
                Pass(phase="select", attempt=1, backward=backward, trains="method", **asdict(shape)),
            ).total
            for backward in (True, False)
        )
        return step - forward


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far: on the device where it uses CUDA, else resident."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    try:  # ru_maxrss would do, but a child inherits its parent's there
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
