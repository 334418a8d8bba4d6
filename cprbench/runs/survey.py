"""The child's side of `blueprint create`: gradients of every domain, curves, fits, and what steps cost.

Runs inside a metered child (worker.py, job kind "blueprint"); returns the file as JSON without the cost of its making.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from cprbench.adapt import data, models, objectives, training
from cprbench.adapt.checkpoints import Checkpoint, resolve
from cprbench.adapt.gradients import privacy
from cprbench.adapt.gradients.audit import audit
from cprbench.adapt.gradients.measure import measure, warm_head
from cprbench.adapt.gradients.steps import step_cost, time_steps
from cprbench.adapt.methods.partial import BYTES_PER_PARAMETER
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.blueprint import picking
from cprbench.blueprint.schema import GENERAL
from cprbench.errors import TrainingError
from cprbench.meters import hardware
from cprbench.meters.flops import Pass, Trained, pass_flops, supported
from cprbench.runs.channel import Channel
from cprbench.runs.composer import Composer, Domain
from cprbench.runs.inspection import folder_of, labels_of
from cprbench.spec import TaskSpec, TrainingSpec, block_seed, stream_seed
from cprbench.tasks import training_for

#: Shares of N at which the cost of a step is measured for eq. 10.
_SHARES = (0.1, 0.25, 0.5, 0.75)


class Survey:
    """One blueprint in the making. `job`: what the parent sent."""

    def __init__(self, job: Mapping[str, Any], channel: Channel) -> None:
        self.job = job
        self.channel = channel
        self.flops = 0
        self.config: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Return {"blueprint": the file's JSON, "flops": counted or None, "device": cpu or cuda}."""
        job = self.job
        checkpoint = resolve(job["model"], offline=job["offline"])
        self.config = checkpoint.config
        self.engine = training.Engine.start(job["precision"], bf16_is_fast=hardware.bf16_is_fast())
        if job["noise_multiplier"]:
            privacy.epsilon(job["noise_multiplier"], job["delta"], privacy.MECHANISMS)  # no accountant: say it now
        if job["kind"] == "audit":
            return self._audit(checkpoint)
        with self.channel.phase("select"):
            domains = [self._measured(self._ready(entry, checkpoint)) for entry in job["domains"]]
            reference = next((d for d in domains if d.tag == GENERAL), domains[0])
            costs, steps = self._costs(reference)
            warmup = self._warmup_steps(reference.loaded)
            composer = Composer(job, checkpoint, domains, reference, warmup, self.engine.precision)
            blueprint = composer.file(costs, steps)
        counted = supported(self.config) is None
        return {"blueprint": blueprint, "flops": self.flops if counted else None, "device": self.engine.device.type}

    # --- measuring ----------------------------------------------------------------------------------

    def _ready(self, entry: Mapping[str, Any], checkpoint: Checkpoint) -> Domain:
        """Return a domain with its model loaded, its head warm and its examples in random order, nothing measured."""
        job, task = self.job, TaskSpec.model_validate(entry["task"])
        dataset = data.load_dataset(task, data=folder_of(job["data"]), offline=job["offline"])
        labels = labels_of(task, dataset.choices, checkpoint.kind)
        seed = block_seed(task.name, task.version, checkpoint.weights_sha256, 0)
        loaded = models.load(checkpoint, labels, seed, "sdpa")
        loaded.model.to(self.engine.device)
        objective = objectives.objective_for(loaded)
        recipe = training_for(task, {}, "blueprint")
        wanted = job["batches"] * job["batch_size"]
        split = "validation" if len(dataset.validation) >= wanted else "train"
        pool = dataset.validation if split == "validation" else dataset.train
        chosen = data.sample_by_label(pool, min(wanted, len(pool)), f"{task.name}/blueprint")
        items = objectives.tokenize(loaded, chosen, recipe.max_tokens)
        random.Random(stream_seed(seed, "probe")).shuffle(items)
        full = len(items) // job["batch_size"]  # norms of batches of unlike sizes do not compare
        if full < 2:
            raise TrainingError(
                f"{task.name}: {len(items)} examples are fewer than two batches of {job['batch_size']}. "
                "Lower --batch-size."
            )
        if self._warmup_steps(loaded):
            self._warm(loaded, objective, dataset.train, recipe, seed)
        info = {
            "tag": entry["tag"],
            "task": task.name,
            "version": task.version,
            "data_sha256": dataset.sha256,
            "split": split,
            "examples": full * job["batch_size"],
            "batches": full,
            "max_tokens": recipe.max_tokens,
        }
        return Domain(entry["tag"], loaded, objective, recipe, items, info, [], {}, None)

    def _batches(self, domain: Domain) -> list[list[Item]]:
        size = self.job["batch_size"]
        return [domain.items[i : i + size] for i in range(0, len(domain.items) - size + 1, size)]

    def _measured(self, domain: Domain) -> Domain:
        """Return a domain with its norms, taken in one pass per batch, or two under noise."""
        job, loaded, batches = self.job, domain.loaded, self._batches(domain)
        everything = Trained(frozenset(loaded.partition.sizes), bool(loaded.partition.new_head))
        done = 0

        def observe(shape: Shape, extra: int) -> None:
            nonlocal done
            done += 1
            self._count(loaded, everything, shape, extra)
            self.channel.send("progress", phase=domain.tag, done=done, of=len(batches) * (2 if noisy else 1))

        setting, noisy = (loaded, domain.objective, self.engine, batches, observe), job["noise_multiplier"] > 0
        if noisy:
            # Noise that can be drawn again protects nobody, so its seed is not that of any block.
            seed, clip = random.SystemRandom().randrange(2**63), job["clip_norm"]
            rows, means = privacy.private_norms(
                *setting, noise_multiplier=job["noise_multiplier"], clip_norm=clip, seed=seed
            )
            return replace(domain, rows=rows, example_norm=means)
        measured = measure(*setting, seed=stream_seed(0, f"draws/{domain.tag}"))
        means = dict(zip(loaded.partition.sizes, measured.example_norms.mean(0).tolist(), strict=True))
        return replace(domain, rows=measured.batch_norms, example_norm=means, measured=measured)

    def _audit(self, checkpoint: Checkpoint) -> dict[str, Any]:
        with self.channel.phase("select"):
            domain = self._ready(self.job["domains"][0], checkpoint)
            found = audit(domain.loaded, domain.objective, self.engine, self._batches(domain))
        told = {**asdict(found), "sizes": dict(domain.loaded.partition.sizes), "task": domain.info["task"]}
        return {"audit": told, "flops": None, "device": self.engine.device.type}

    def _warmup_steps(self, loaded: LoadedModel) -> int:
        # Under noise the head stays as drawn: training it would use examples that the guarantee does not cover.
        unused = not loaded.partition.new_head or self.job["noise_multiplier"]
        return 0 if unused else int(self.job["warmup_steps"])

    def _warm(
        self, loaded: LoadedModel, objective: Objective, examples: Sequence[Any], recipe: TrainingSpec, seed: int
    ) -> None:
        steps = self._warmup_steps(loaded)
        chosen = data.sample_by_label(examples, min(len(examples), steps * recipe.batch_size), "warm-up")
        items = objectives.tokenize(loaded, chosen, recipe.max_tokens)
        epochs = math.ceil(steps * recipe.batch_size / len(items))
        plan = training.plan_batches([item.length for item in items], recipe.batch_size, epochs, seed)[:steps]
        torch.manual_seed(stream_seed(seed, "warm-up"))

        def after_step(step: int, loss: float, shape: Shape) -> None:
            self._count(loaded, Trained(frozenset(), True), shape, 0)

        warm_head(loaded, objective, self.engine, [[items[i] for i in batch] for batch in plan], recipe, after_step)

    def _count(self, loaded: LoadedModel, trained: Trained, shape: Shape, extra: int) -> int:
        """Add the FLOPs of a training pass, and return them; 0 for an architecture without a count."""
        if supported(self.config) is not None:
            return 0
        done = Pass(phase="select", attempt=1, backward=True, trains="method", extra_flops=extra, **asdict(shape))
        found = pass_flops(self.config, loaded.kind, loaded.labels, trained, done).total
        self.flops += found
        return found

    def _costs(self, domain: Domain) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return eq. 10 fitted per resource, and the parts of a step, from steps that train sets in pick order."""
        loaded, sizes = domain.loaded, domain.loaded.partition.sizes
        total = loaded.partition.total
        norms = {cell: domain.norm(cell) for cell in sizes}
        order = picking.rank(norms, sizes, "density")
        sets = [tuple(sizes)]
        for share in _SHARES:
            if min(sizes.values()) <= share * total:
                sets.append(picking.fill(order, sizes, total, share, embed=True).submodules)
        layers = [cell for cell in sizes if cell.partition(".")[2]]
        sets = [tuple(layers[-2:]), tuple(layers[:2]), *reversed(list(dict.fromkeys(s for s in sets if s)))]
        size = domain.recipe.batch_size
        batch = sorted(domain.items, key=lambda item: item.length)[len(domain.items) // 2 :][:size]
        flops: dict[tuple[str, ...], int] = {}
        shapes: list[Shape] = []

        def observe(cells: Sequence[str], shape: Shape) -> None:
            new_head = bool(loaded.partition.new_head)
            flops[tuple(cells)] = self._count(loaded, Trained(frozenset(cells), new_head), shape, 0)
            shapes.append(shape)

        seconds = time_steps(loaded, domain.objective, self.engine, batch, sets, domain.recipe, observe)
        steps = step_cost(sets, seconds, sizes, shapes[0]).model_dump()
        held = 4 * sum(p.numel() for p in loaded.model.parameters())
        curve = sorted(sets[2:], key=lambda picked: sum(sizes[cell] for cell in picked))
        shares = [sum(sizes[c] for c in picked) / total for picked in curve]
        timed = dict(zip(sets, seconds, strict=True))
        points: list[tuple[str, str, list[float]]] = [
            ("seconds", "sampled", [timed[picked] for picked in curve]),
            ("memory_bytes", "modelled", [held + BYTES_PER_PARAMETER * share * total for share in shares]),
        ]
        if supported(self.config) is None:
            points.append(("flops", "counted", [float(flops[picked]) for picked in curve]))
        return [
            {"resource": name, "source": source, "points": list(zip(shares, found, strict=True))}
            for name, source, found in points
        ], steps
