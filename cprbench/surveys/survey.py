"""The child's side of `blueprint create`: gradients of every domain, curves, fits, and what steps cost.

Runs inside a metered child (worker.py, job kind "blueprint"); returns the file as JSON without the cost of its making.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cprbench.adapt import data, models, objectives
from cprbench.adapt.checkpoints import Checkpoint, resolve
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import privacy
from cprbench.adapt.gradients.audit import audit
from cprbench.adapt.gradients.measure import measure, warm_head_on_sample
from cprbench.adapt.gradients.steps import saved_bytes, step_cost, time_steps
from cprbench.adapt.methods.partial import BYTES_PER_PARAMETER
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Objective, Shape, Work
from cprbench.blueprint import picking
from cprbench.blueprint.schema import GENERAL
from cprbench.errors import TrainingError
from cprbench.meters import hardware
from cprbench.meters.flops import Pass, Trained, pass_flops, supported
from cprbench.schema import sha256_of
from cprbench.sessions.channel import Channel
from cprbench.sessions.inspection import folder_of, labels_of
from cprbench.spec import TaskSpec, TrainingSpec, block_seed, stream_seed
from cprbench.surveys.composer import Composer, Domain
from cprbench.tasks import training_for

#: Shares of N at which the cost of a step is measured for eq. 10.
_SHARES = (0.1, 0.25, 0.5, 0.75)


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Do the job and return its result."""
    return Survey(job, channel).run()


class Survey:
    """One blueprint in the making. `job`: what the parent sent."""

    def __init__(self, job: Mapping[str, Any], channel: Channel) -> None:
        self.job = job
        self.channel = channel
        self.flops = 0
        self.config: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Return {"blueprint": the file's JSON, "flops": count or why there is none, "device": cpu or cuda}."""
        job = self.job
        checkpoint = resolve(job["model"], offline=job["offline"])
        self.config = checkpoint.config
        self.engine = Engine.start(job["precision"], bf16_is_fast=hardware.bf16_is_fast())
        if job["noise_multiplier"]:
            privacy.epsilon(job["noise_multiplier"], job["delta"], privacy.MECHANISMS)  # no accountant: say it now
        if job["kind"] == "audit":
            return self._audit(checkpoint)
        for entry in job["domains"]:  # what is missing is said before anything is measured
            task = TaskSpec.model_validate(entry["task"])
            data.load_dataset(task, data=folder_of(job["data"]), offline=job["offline"])
        with self.channel.phase("select"):
            domains = [self._measured(self._ready(entry, checkpoint)) for entry in job["domains"]]
            reference = next((d for d in domains if d.tag == GENERAL), domains[0])
            costs, steps = self._costs(reference)
            warmup = self._warmup_steps(reference.loaded)
            composer = Composer(job, checkpoint, domains, reference, warmup, self.engine.precision)
            blueprint = composer.file(costs, steps)
        flops = supported(self.config) or self.flops  # the count, or the reason why there is none
        return {"blueprint": blueprint, "flops": flops, "device": self.engine.device.type}

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
        domain = domain_of(entry["tag"], task, dataset, loaded, objective, recipe, job, seed)
        if self._warmup_steps(loaded):
            self._warm(loaded, objective, dataset.train, recipe, seed)
        return domain

    def _measured(self, domain: Domain) -> Domain:
        """Return a domain with its norms, taken in one pass per batch, or two under noise."""
        job, loaded, batches = self.job, domain.loaded, domain.batches
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
                *setting,
                noise_multiplier=job["noise_multiplier"],
                clip_norm=clip,
                batch_size=_rate(domain.pool, len(batches) * job["batch_size"]) * domain.pool / len(batches),
                seed=seed,
            )
            return replace(domain, rows=rows, example_norm=means)
        return domain.holding(measure(*setting, seed=stream_seed(0, f"draws/{domain.tag}")))

    def _audit(self, checkpoint: Checkpoint) -> dict[str, Any]:
        with self.channel.phase("select"):
            domain = self._ready(self.job["domains"][0], checkpoint)
            found = audit(domain.loaded, domain.objective, self.engine, domain.batches)
        told = {**asdict(found), "sizes": dict(domain.loaded.partition.sizes), "task": domain.info["task"]}
        return {"audit": told, "flops": "an audit times its passes", "device": self.engine.device.type}

    def _warmup_steps(self, loaded: LoadedModel) -> int:
        # Under noise the head stays as drawn: training it would use examples that the guarantee does not cover.
        unused = not loaded.partition.new_head or self.job["noise_multiplier"]
        return 0 if unused else int(self.job["warmup_steps"])

    def _warm(
        self, loaded: LoadedModel, objective: Objective, examples: Sequence[Any], recipe: TrainingSpec, seed: int
    ) -> None:
        def after_step(step: int, loss: float, works: Sequence[Work]) -> None:
            for work in works:
                self._count(loaded, Trained(frozenset(), True), work.shape, 0)

        steps = self._warmup_steps(loaded)
        warm_head_on_sample(loaded, objective, self.engine, examples, steps, recipe, seed, after_step)

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
        items = sorted((item for batch in domain.batches for item in batch), key=lambda item: item.length)
        batch = items[len(items) // 2 :][:size]
        flops: dict[tuple[str, ...], int] = {}
        shapes: list[Shape] = []

        def observe(cells: Sequence[str], shape: Shape) -> None:
            new_head = bool(loaded.partition.new_head)
            flops[tuple(cells)] = self._count(loaded, Trained(frozenset(cells), new_head), shape, 0)
            shapes.append(shape)

        seconds = time_steps(loaded, domain.objective, self.engine, batch, sets, domain.recipe, observe)
        steps = step_cost(sets, seconds, sizes, shapes[0]).model_dump()
        weights = 4 * sum(p.numel() for p in loaded.model.parameters())
        curve = sorted(sets[2:], key=lambda picked: sum(sizes[cell] for cell in picked))
        shares = [sum(sizes[c] for c in picked) / total for picked in curve]
        timed = dict(zip(sets, seconds, strict=True))
        held_by = [saved_bytes(loaded, domain.objective, self.engine, batch, picked) for picked in curve]
        memory = [held + BYTES_PER_PARAMETER * share * total for held, share in zip(held_by, shares, strict=True)]
        points: list[tuple[str, str, list[float]]] = [
            ("seconds", "sampled", [timed[picked] for picked in curve]),
            ("memory_bytes", "modelled", [float(weights + held) for held in memory]),
        ]
        if supported(self.config) is None:
            points.append(("flops", "counted", [float(flops[picked]) for picked in curve]))
        return [
            {"resource": name, "source": source, "points": list(zip(shares, found, strict=True))}
            for name, source, found in points
        ], steps


def domain_of(
    tag: str,
    task: TaskSpec,
    dataset: data.Dataset,
    loaded: LoadedModel,
    objective: Objective,
    recipe: TrainingSpec,
    job: Mapping[str, Any],
    seed: int,
) -> Domain:
    """Return a domain with its batches drawn from the validation split, or from train where that is too small.

    `job`: batches, batch_size, noise_multiplier. Raises TrainingError for fewer examples than two batches.
    """
    wanted, size = job["batches"] * job["batch_size"], job["batch_size"]
    split = "validation" if len(dataset.validation) >= wanted else "train"
    pool = dataset.validation if split == "validation" else dataset.train
    if job["noise_multiplier"]:
        parts = by_own_hash(pool, wanted, job["batches"], f"{task.name}/blueprint")
    else:
        chosen = list(data.sample_by_label(pool, min(wanted, len(pool)), f"{task.name}/blueprint"))
        random.Random(stream_seed(seed, "probe")).shuffle(chosen)
        starts = range(0, len(chosen) - size + 1, size)  # batches of one size compare
        parts = [chosen[start : start + size] for start in starts]
    if len(parts) < 2:
        raise TrainingError(
            f"{task.name}: {len(pool)} examples are fewer than two batches of {size}. Lower --batch-size, or in a run "
            "select.batch_size."
        )
    batches = [objectives.tokenize(loaded, part, recipe.max_tokens) for part in parts]
    info = {
        "tag": tag,
        "task": task.name,
        "version": task.version,
        "data_sha256": dataset.sha256,
        "split": split,
        "examples": sum(len(batch) for batch in batches),
        "batches": len(batches),
        "max_tokens": recipe.max_tokens,
    }
    return Domain(tag, loaded, objective, recipe, batches, len(pool), info, [], {}, None)


def by_own_hash(pool: Sequence[Any], wanted: int, batches: int, salt: str) -> list[list[Any]]:
    """Return `batches` lists of about `wanted` examples in all: whether one is in, and where, depends on it alone."""
    rate = _rate(len(pool), wanted)
    found: list[list[Any]] = [[] for _ in range(batches)]
    for example in pool:
        place = int(sha256_of([salt, example.id])[:13], 16) / 2**52
        if place < rate:
            found[int(place / rate * batches)].append(example)
    return found


def _rate(examples: int, wanted: int) -> float:
    """Return the chance of an example to be in; it moves only where the size of the data passes a power of two."""
    return min(1.0, wanted / (1 << max(0, examples - 1).bit_length()))
