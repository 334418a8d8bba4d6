"""The child's side of `data score`: every training example's loss and gradient norms, part by part.

A part that is on disk is not measured again, so a killed process loses one part. Beside the texts of the task, memory
holds one part at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from cprbench.adapt import data, models, objectives
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import influence
from cprbench.adapt.gradients.measure import warm_head_on_sample
from cprbench.adapt.objectives import Shape, Work
from cprbench.errors import TrainingError
from cprbench.meters import hardware
from cprbench.meters.flops import Flops, Pass, Trained, pass_flops, supported
from cprbench.sessions.channel import Channel
from cprbench.sessions.inspection import folder_of, labels_of
from cprbench.spec import TaskSpec, block_seed
from cprbench.tasks import training_for

#: Examples per part: what is lost by a kill, and what memory holds.
PART = 2048
PARTS, HEAD, FLOPS = "parts", "head.safetensors", "flops.jsonl"


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Do the job and return its result."""
    return Appraiser(job, channel).run()


class Appraiser:
    """One file of scores in the making. `job`: what the parent sent."""

    def __init__(self, job: Mapping[str, Any], channel: Channel) -> None:
        self.job = job
        self.channel = channel
        self.folder = Path(job["folder"])
        self.parts = self.folder.parent / PARTS
        self.spent = Flops()
        self.log = (self.folder / FLOPS).open("a", encoding="utf-8", buffering=1)

    def run(self) -> dict[str, Any]:
        """Return what the file says of itself; its rows lie in parts."""
        job, task = self.job, TaskSpec.model_validate(self.job["task"])
        recipe = training_for(task, {}, "data score")
        dataset = data.load_dataset(task, data=folder_of(job["data"]), offline=job["offline"])
        checkpoint = resolve(job["model"], offline=job["offline"])
        engine = Engine.start(job["precision"], bf16_is_fast=hardware.bf16_is_fast())
        self.config, labels = checkpoint.config, labels_of(task, dataset.choices, checkpoint.kind)
        seed = block_seed(task.name, task.version, checkpoint.weights_sha256, job["block"])
        self.loaded = models.load(checkpoint, labels, seed, "sdpa")
        self.loaded.model.to(engine.device)
        objective = objectives.objective_for(self.loaded)
        examples = data.sample_by_label(dataset.train, job["max_examples"], f"{task.name}/train")
        if not examples:
            raise TrainingError(f"task {task.name!r} has no training examples to score.")
        partition = self.loaded.partition
        warmup = job["warmup_steps"] if partition.new_head else 0
        info = {
            "task": {"name": task.name, "version": task.version, "data_sha256": dataset.sha256},
            "split": "train",
            "model": {
                "source": checkpoint.source,
                "label": checkpoint.label,
                "revision": checkpoint.revision,
                "weights_sha256": checkpoint.weights_sha256,
                "parameters": partition.total,
                "kind": checkpoint.kind,
            },
            "sizes": dict(partition.sizes),
            "head": f"drawn from block {job['block']}, then warmed" if partition.new_head else None,
            "warmup_steps": warmup,
            "block": job["block"],
            "max_tokens": recipe.max_tokens,
            "precision": engine.precision,
            "examples": len(examples),
        }
        self._same_as_before({**info, "batch_size": job["batch_size"]})
        self.setting = (self.loaded, objective, engine)
        with self.channel.phase("select"):
            if warmup:
                self._warm(dataset.train, warmup, recipe, seed)
            for start in range(0, len(examples), PART):
                path = self.parts / f"{start:09}.npz"
                if not path.exists():
                    some = examples[start : start + PART]
                    self._measure(some, recipe.max_tokens, path, start, len(examples))
        return {"info": info, "device": engine.device.type, "uncounted": supported(self.config)}

    def _same_as_before(self, info: Mapping[str, Any]) -> None:
        """Raise TrainingError where the parts on disk are of other data, another model or another recipe."""
        self.parts.mkdir(exist_ok=True)
        path = self.parts / "info.json"
        if not path.exists():
            path.write_text(json.dumps(info), encoding="utf-8")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := [key for key, value in info.items() if before.get(key) != value]:
            raise TrainingError(
                f"{self.parts} holds parts that were scored with another {', '.join(other)}. Pass another --out, or "
                "delete that folder."
            )

    def _warm(self, examples: Any, steps: int, recipe: Any, seed: int) -> None:
        """Warm the head, or take the one that an earlier attempt warmed: all parts are of one head."""
        path, names = self.parts / HEAD, self.loaded.partition.new_head
        if path.exists():
            self.loaded.model.load_state_dict(load_file(path), strict=False)
            return

        def after_step(step: int, loss: float, works: Sequence[Work]) -> None:
            for work in works:
                self._count(work.shape, "head", 0)

        warm_head_on_sample(*self.setting, examples, steps, recipe, seed, after_step)
        parameters = dict(self.loaded.model.named_parameters())
        part = path.with_suffix(".tmp")
        save_file({name: parameters[name].detach().cpu().contiguous() for name in names}, part)
        part.replace(path)

    def _measure(self, examples: Any, max_tokens: int, path: Path, start: int, total: int) -> None:
        items = objectives.tokenize(self.loaded, examples, max_tokens)

        def observe(shape: Shape, extra: int | None, done: int) -> None:
            self._count(shape, "activations", extra or 0)
            self.channel.send("progress", phase="scores", done=start + done, of=total)

        found = influence.measure(*self.setting, items, self.job["batch_size"], observe)
        part = path.with_suffix(".tmp.npz")
        assert found.norms is not None
        np.savez(
            part,
            cells=np.array(list(self.loaded.partition.sizes)),
            ids=np.array([example.id for example in examples]),
            labels=np.array([example.reference for example in examples]),
            losses=found.losses,
            norms=found.norms,
        )
        part.replace(path)

    def _count(self, shape: Shape, trains: Any, extra: int) -> None:
        if supported(self.config) is not None:
            return
        done = Pass(phase="select", attempt=1, backward=True, trains=trains, extra_flops=extra, **asdict(shape))
        trained = Trained(frozenset(), bool(self.loaded.partition.new_head))
        self.spent += pass_flops(self.config, self.loaded.kind, self.loaded.labels, trained, done)
        # Pass by pass, so that what a killed process did is billed as well.
        self.log.write(json.dumps({"total": self.spent.total, "padding": self.spent.padding}) + "\n")
