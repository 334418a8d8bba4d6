"""A run that writes blueprints of its model on the way (paper section 5: at 50, 80 and 100 % of training).

The model is measured as it stands, in windows of phase `score`, which nobody is billed for; training goes on as if
nothing had happened. The files lie in the run's folder, and whether their ranks held is in the record's notes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import cprbench
from cprbench.adapt import data
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.gradients.measure import measure
from cprbench.adapt.objectives import Shape, Work
from cprbench.adapt.training import AfterStep
from cprbench.blueprint import files
from cprbench.blueprint.drift import spearman
from cprbench.blueprint.schema import COSTS, Blueprint
from cprbench.errors import TrainingError
from cprbench.meters.flops import Trains
from cprbench.schema import parse
from cprbench.sessions.channel import Channel
from cprbench.sessions.inspection import folder_of
from cprbench.sessions.session import Session
from cprbench.spec import Phase, stream_seed
from cprbench.surveys.composer import Composer
from cprbench.surveys.survey import domain_of

FOLDER = "blueprints"


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Do the job and return its result."""
    return Snapshots(job, channel).run()


def step_of(share: float, steps: int) -> int:
    """Return the first step at which `share` (whole per cents) of the steps are done, exactly: 0.07 of 100 is 7."""
    return -(-round(share * 100) * steps // 100)


class Snapshots(Session):
    """A session with blueprints at `spec.snapshots`, shares of its planned steps."""

    def run(self) -> dict[str, Any]:
        """Return what any session returns; its notes tell the rank correlation of every two blueprints.

        None: all submodules of one of them have the same norm, so there are no ranks. `snapshots_missed`: those whose
        step was taken while choosing, before a budget in FLOPs or a selection could tell the number of steps.
        """
        if self.recipe.compile:
            raise TrainingError("a compiled model shows no gradients of examples: leave compile or snapshots out.")
        self.norms: dict[str, list[float]] = {}
        result = super().run()
        pairs = combinations(self.norms.items(), 2)
        ranks = {f"{early}-{late}": spearman(a, b) for (early, a), (late, b) in pairs}
        result["notes"] |= {"blueprint_ranks": ranks, "blueprints": [f"{FOLDER}/{at}.json" for at in self.norms]}
        steps = self.steps or 0  # known by now: budgets in hours or energy are refused
        missed = {
            f"{share:.2f}": f"step {step_of(share, steps)} of {steps} was taken before the number of steps was known"
            for share in self.spec.snapshots
            if f"{share:.2f}" not in self.norms
        }
        if missed:
            result["notes"]["snapshots_missed"] = missed
        return result

    def after_step(self, phase: Phase, trains: Trains) -> AfterStep:
        """Return what any session does after a step, then the blueprint if one is due."""
        usual = super().after_step(phase, trains)

        def after_step(step: int, loss: float, works: Sequence[Work]) -> bool | None:
            ends = usual(step, loss, works)
            for share in self.spec.snapshots:
                if self.steps is not None and self.steps_done == step_of(share, self.steps):
                    self._take(share)
            return ends

        return after_step

    def _take(self, share: float) -> None:
        """Write the blueprint of the model as it is, on batches of examples that it does not train on."""
        modes = [(module, module.training) for module in self.loaded.model.modules()]
        trains = [(parameter, parameter.requires_grad) for parameter in self.loaded.model.parameters()]
        with self.channel.phase("score"):
            blueprint = self._measured(share)
            files.write(blueprint, self.folder / FOLDER / f"{share:.2f}.json")
        for module, mode in modes:
            module.training = mode
        for parameter, needed in trains:
            parameter.requires_grad_(needed)
        self.norms[f"{share:.2f}"] = [layer.gradient_norm for layer in blueprint.layers]

    def _measured(self, share: float) -> Blueprint:
        job, recipe, task, began = self.job, self.recipe, self.task, time.monotonic()
        (self.folder / FOLDER).mkdir(exist_ok=True)
        dataset = data.load_dataset(task, data=folder_of(job["data"]), offline=job["offline"])
        asked = {
            "checkpoint": share,
            "batches": recipe.select_batches,
            "batch_size": recipe.select_batch_size,
            "noise_multiplier": 0,
        }
        domain = domain_of(task.name, task, dataset, self.loaded, self.objective, recipe, asked, self.spec.seed)
        flops = 0

        def observe(shape: Shape, extra: int) -> None:
            nonlocal flops
            self.counter.enter("score", "all", Work(shape), extra=extra)
            flops += self.counter.of([self.counter.pass_of(Work(shape), "score", "all")]).total + extra

        setting = (self.loaded, self.objective, self.engine, domain.batches, observe)
        domain = domain.holding(measure(*setting, seed=stream_seed(0, f"draws/{domain.tag}")))
        checkpoint = replace(
            resolve(job["model"], offline=job["offline"]),
            revision=f"step {self.steps_done} of {self.steps}, seed {self.spec.seed}",
            weights_sha256=self._weights_sha256(),
        )
        found = Composer(asked, checkpoint, [domain], domain, 0, self.engine.precision).file([], None)
        if self.loaded.partition.new_head:
            found["measurement"]["head"] = "trained by the run, as far as it had come"
        why = "the meters of a run do not tell its parts apart"
        spent: dict[str, Any] = {"seconds": time.monotonic() - began, "hardware_class": job["hardware_class"]}
        if self.counter.uncounted is None:
            spent["flops"] = flops
        missing = {name: why for name in COSTS if name not in spent}
        made = {"tool": f"cprbench {cprbench.__version__}", **spent, "why_missing": missing}
        return parse(Blueprint, {**found, "made": made}, f"the blueprint at {share:.0%} of training")

    def _weights_sha256(self) -> str:
        """Return a hash of the live weights, by name: of no file, so that nobody takes them for the model's own."""
        digest = hashlib.sha256()
        for name, parameter in self.loaded.model.named_parameters():
            digest.update(name.encode() + b"\0" + parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()
