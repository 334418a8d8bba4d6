"""One run in its child: it loads, chooses, trains and scores, and tells the parent when phases change."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from cprbench.adapt import data, models, objectives, scoring, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.devices import Engine
from cprbench.adapt.methods import Prepared, build_method, method_class
from cprbench.adapt.objectives import Item, Work
from cprbench.adapt.prefix import CachePlan, Room, plan_cache
from cprbench.adapt.products import float32_products
from cprbench.adapt.selection import Selected, build_selection
from cprbench.adapt.settings import unpinned
from cprbench.errors import TrainingError
from cprbench.meters import hardware
from cprbench.meters.flops import Trained, Trains
from cprbench.sessions.channel import TRAINS, Channel
from cprbench.sessions.counting import Counter
from cprbench.sessions.ending import Ending
from cprbench.sessions.inspection import folder_of, labels_of
from cprbench.sessions.measuring import Measuring
from cprbench.spec import Phase, RunSpec, TaskSpec, billed_phases, stream_seed


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Do the job and return its result."""
    return Session(job, channel).run()


class Session:
    """One run from loading to the final score. With several processes each has one; the first one writes and talks."""

    def __init__(self, job: Mapping[str, Any], channel: Channel) -> None:
        self.job = job
        self.channel = channel
        self.spec = RunSpec.model_validate(job["spec"])
        self.task = TaskSpec.model_validate(job["task"])
        self.recipe = self.spec.training
        self.folder = Path(job["folder"])
        self.steps_done = 0
        self.seen: list[list[Item]] = []  # batches that were trained on while choosing
        self.steps: int | None = None  # of the whole run; None while only its selection or a budget can tell
        self.steps_chosen = 0  # of them, taken while choosing
        self.billed = billed_phases(self.spec.stop)
        self.ending = Ending(self)

    def run(self) -> dict[str, Any]:
        """Return what the record keeps of this run besides its costs."""
        spec, recipe, channel = self.spec, self.recipe, self.channel
        _seed_everything(spec.seed)
        dataset = data.load_dataset(self.task, data=folder_of(self.job["data"]), offline=self.job["offline"])
        checkpoint = resolve(self.job["model"], offline=self.job["offline"])
        _unchanged("data_sha256", dataset.sha256, spec.task.data_sha256)
        _unchanged("weights_sha256", checkpoint.weights_sha256, spec.model.weights_sha256)
        self.engine = Engine.start(recipe.precision, bf16_is_fast=hardware.bf16_is_fast())
        self._start_writing()
        labels = labels_of(self.task, dataset.choices, checkpoint.kind)
        four_bit = getattr(method_class(spec.method.name), "four_bit", False)
        self.loaded = models.load(checkpoint, labels, spec.seed, recipe.attention, four_bit=four_bit)
        self.loaded.model.to(self.engine.device)
        self.objective = objectives.objective_for(self.loaded)
        engine = self.engine  # one answer for all processes, or they would count differently
        self.room = engine.first(lambda: Room.here(engine.device, self.folder, engine.processes))
        new_head = bool(self.loaded.partition.new_head)
        self.counter = Counter(
            self._file("work.jsonl"), spec.model, labels, self.job["attempt"], new_head=new_head, billed=self.billed
        )
        salt = self.task.name
        chosen = data.sample_by_label(dataset.train, recipe.max_examples, f"{salt}/train")
        if not chosen:
            raise TrainingError("there are no training examples: training.max_examples is 0 or the split is empty.")
        self.test = data.sample_by_label(dataset.test, recipe.eval_items, f"{salt}/test")
        self.held_out = data.sample_by_label(dataset.validation, recipe.validation_items, f"{salt}/validation")
        self.items = objectives.tokenize(self.loaded, chosen, recipe.max_tokens)
        self.test_items = objectives.tokenize(self.loaded, self.test, recipe.max_tokens)
        self.held_out_items = objectives.tokenize(self.loaded, self.held_out, recipe.max_tokens)

        is_search = self.job["role"] == "search"  # the test split is for the chosen rate only
        base = None if is_search else self._score_test("base_predictions.jsonl", adapted=False)
        files = self.job["files"]
        name, settings = spec.method.name, spec.method.settings
        method = build_method(name, unpinned(name, settings, files["method"]))
        if "memory" in getattr(method, "budget", ""):
            self.room = replace(self.room, memory=0)  # what the budget leaves is not known here
        settings = unpinned("selection", spec.selection.settings, files["selection"])
        selection = build_selection(spec.selection.name, settings)
        kept = selection.kept(len(chosen))
        self.steps = None if kept is None or spec.budget is not None else self._steps_on(kept)
        measuring = Measuring(self, chosen, self.items)
        with channel.phase("select") if method.chooses or selection.chooses else nullcontext():
            prepared = method.prepare(self.loaded, measuring.context())
            self.counter.trained = self._trained(prepared)
            self.counter.uncounted = self.counter.uncounted or prepared.uncounted
            self._tell_what_trains(prepared, labels)
            selected = selection.select(measuring.pool(prepared))
        self.batches = self._batches(selected, measuring)  # in no phase: for every arm alike, planning is not billed
        id_of = {id(item): example.id for item, example in zip(self.items, chosen, strict=True)}
        chosen = tuple(chosen[i] for i in selected.places)
        self.steps_chosen = self.steps_done
        planned = self.batches[self.steps_chosen :]
        rest = planned if self.ending.metered is None else self.ending.batches(selected.places)
        # Processes that share a batch draw dropout of their own, or they would all drop alike.
        _seed_everything(stream_seed(spec.seed, "dropout" + f" {self.engine.rank}" * (self.engine.rank > 0)))
        with channel.phase("train"):
            cache = self.cache_of(planned)
            if recipe.compile:
                self.loaded.model.base_model.compile(dynamic=True)  # type: ignore[union-attr]
            optimizer_bytes = training.train(
                self.loaded,
                self.objective,
                self.engine,
                self._noted(rest),
                recipe,
                float(recipe.learning_rate or 0.0),
                self.after_step("train", "method"),
                scale=self.ending.scale,
                cache=cache,
                folder=self.folder,
            )
        ended = self.ending.told()
        trained_on = [[id_of[id(item)] for item in batch] for batch in self.seen]
        batches_sha256 = hashlib.sha256("\n".join(map(" ".join, trained_on)).encode()).hexdigest()
        final = None if is_search else self._score_test("predictions.jsonl", adapted=True)
        trained = {n: p for n, p in self.loaded.model.named_parameters() if p.requires_grad}
        heads = set(self.loaded.partition.new_head)
        self._save(trained, prepared)
        return {
            "psi": {
                "primary": self.task.primary,
                "base": base,
                "final": final,
                "items": 0 if is_search else len(self.test),
                "validation": self.last_validation,
            },
            "trained_parameters": sum(p.numel() for n, p in trained.items() if n not in heads),
            "total_parameters": self.loaded.partition.total,
            "new_head_parameters": sum(p.numel() for n, p in trained.items() if n in heads),
            "trained_submodules": list(prepared.trained_submodules),
            "k_asked": prepared.k_asked,
            "k_reached": prepared.k_reached,
            "optimizer_state_bytes": optimizer_bytes,
            "selected_examples": len(chosen),
            "selection_sha256": hashlib.sha256("\n".join(sorted(e.id for e in chosen)).encode()).hexdigest(),
            "batches_sha256": batches_sha256,
            "notes": {
                **prepared.notes,
                **_apart(selected.notes),
                "precision": self.engine.precision,
                "float32_products": float32_products(),
                "steps": self.steps_done,
                "warmup_steps_of_head": self.steps_chosen,
                "examples_trained_on": len({i for batch in trained_on for i in batch}),
                "truncated_examples": sum(i.truncated for i in (*self.items, *self.test_items)),
                "labels": labels,
                "prefix_cache": cache.told(),
                **ended,
                **({"processes": self.engine.processes} if self.engine.processes > 1 else {}),
            },
            "device": str(self.engine.device.type),
        }

    # --- the plan -----------------------------------------------------------------------------------

    def planned(self, places: Sequence[int], epochs: int | None = None) -> list[list[Item]]:
        """Return the batches of a run on these places of the pool."""
        items = [self.items[i] for i in places]
        recipe = self.recipe
        lengths = [item.length for item in items]
        plan = training.plan_batches(lengths, recipe.batch_size, epochs or recipe.epochs, self.spec.seed)
        return [[items[i] for i in batch] for batch in plan]

    def _steps_on(self, examples: int) -> int:
        return self.recipe.epochs * math.ceil(examples / self.recipe.batch_size)

    def afford_steps(self, steps: int, what: str) -> None:
        """Raise TrainingError where so many more steps leave none to train."""
        if self.steps is not None and self.steps_done + steps >= self.steps:
            raise TrainingError(
                f"the run has {self.steps} steps and {what} takes {self.steps_done + steps} of them, so none is left "
                "to train. Train on more examples or epochs, or lower it."
            )

    def cache_of(self, batches: Sequence[Sequence[Item]]) -> CachePlan:
        """Return what training on these batches keeps of the frozen layers."""
        bf16 = self.engine.precision == "bf16"
        return plan_cache(self.loaded, self.objective, batches, self.recipe, self.room, bf16=bf16)

    def _batches(self, selected: Selected, measuring: Measuring) -> list[list[Item]]:
        """Return all batches of the run; `rest` of them are trained after what the choice has used up."""
        if self.ending.metered is not None:  # the first epochs, from which the cache is planned
            return self.planned(selected.places, max(2, self.recipe.epochs))
        limit = self.ending.flops or selected.flops
        if limit is None:
            batches = self.planned(selected.places)
        else:
            self.must_count()
            batches = self.ending.affordable(selected.places, limit, measuring.costs)
        self.steps = len(batches)
        self.afford_steps(0, "choosing")
        return batches

    def _noted(self, batches: Iterable[list[Item]]) -> Iterator[list[Item]]:
        """Yield batches as they are trained on: a run may end before it has seen them all."""
        for batch in batches:
            self.seen.append(batch)
            yield batch

    # --- phases -------------------------------------------------------------------------------------

    last_validation: dict[str, float] | None = None

    def after_step(self, phase: Phase, trains: Trains) -> training.AfterStep:
        """Return what is done after every step of a phase: counting, history, validation, telling the parent."""

        def after_step(step: int, loss: float, works: Sequence[Work]) -> bool:
            for work in works:
                self.counter.enter(phase, trains, work)
            self.steps_done += 1
            # A stop rule is asked in phase train alone, and what it is not told it does not pay for.
            validates = self.ending.validates() if phase == "train" else self.validates() and self.spec.stop is None
            row: dict[str, Any] = {"step": self.steps_done, "phase": phase, "loss": loss, **self._so_far()}
            if self.held_out_items and validates:
                row["validation"] = self._validate()
                if "validate" in self.billed:
                    row |= self._so_far()
            self.history.write(json.dumps(row) + "\n")
            # While nobody knows, as many as all data take.
            of = self.ending.expected or self.steps or self._steps_on(len(self.items))
            self.channel.send("step", step=self.steps_done, of=of, loss=loss, **self.channel.allocated())
            return phase == "train" and self.ending.ends(row)

        return after_step

    def validates(self) -> bool:
        """Return whether the step that was just taken is on the grid of validations: even, and the last step."""
        grid, steps = self.recipe.validations, self.steps or 0
        return self.steps_done in {math.ceil(steps * (i + 1) / grid) for i in range(grid)} | {steps}

    def _so_far(self) -> dict[str, Any]:
        seconds = round(self.channel.billed_seconds(self.billed), 6)
        return {"t": time.monotonic(), "seconds": seconds, "flops": self.counter.spent.total}

    def _validate(self) -> dict[str, float]:
        with self.channel.phase("validate"):
            found = self._predict(self.held_out, self.held_out_items, "validate", adapted=True)
            self.last_validation = scoring.psi(found, self.task.metrics)
        return self.last_validation

    def _score_test(self, name: str, *, adapted: bool) -> dict[str, float]:
        with self.channel.phase("score"):
            found = self._predict(self.test, self.test_items, "score", adapted=adapted)
            lines = [json.dumps(p.row(), ensure_ascii=False, allow_nan=False) + "\n" for p in found]
            self._file(name).write_text("".join(lines), encoding="utf-8")
            return scoring.psi(found, self.task.metrics)

    def _predict(self, examples: Sequence[Any], items: Sequence[Item], phase: Phase, *, adapted: bool) -> list[Any]:
        """Return a prediction per item; processes take turns by batches, and every one has all of them in the end."""
        found: list[tuple[int, list[float]]] = []
        works: list[Work] = []
        trains: Trains = "method" if adapted else "nothing"
        turns = (self.engine.rank, self.engine.processes)
        for values, shape in training.score(self.loaded, self.objective, items, self.recipe.score_batch_size, turns):
            found += values
            works.append(Work(shape, backward=False))
            self.channel.send("progress", phase=phase, done=len(found), of=len(items))
        for values, done in self.engine.gather((found, works)):
            found += values if values is not found else []
            for work in done:
                self.counter.enter(phase, trains, work)
        by_place = dict(found)
        return [scoring.predict(examples[i], by_place[i], item.bytes) for i, item in enumerate(items)]

    # --- accounts -----------------------------------------------------------------------------------

    def _start_writing(self) -> None:
        self.history = self._file("history.jsonl").open("w", encoding="utf-8", buffering=1)

    def _file(self, name: str) -> Path:
        """Return where the first process writes a file, and the others nothing."""
        return self.folder / name if self.engine.rank == 0 else Path(os.devnull)

    def must_count(self) -> None:
        """Raise TrainingError where a bill in FLOPs has to be met and there is no count."""
        if self.counter.uncounted is not None:
            raise TrainingError(
                f"there are no FLOPs to compare by: {self.counter.uncounted}. Leave out the budget, or selection.flops."
            )

    def billed_flops(self) -> int:
        """Return the FLOPs billed so far, the same for all processes."""
        return self.engine.first(lambda: self.counter.spent.total)

    def _trained(self, prepared: Prepared) -> Trained:
        new_head = bool(self.loaded.partition.new_head)
        return Trained(frozenset(prepared.trained_submodules), new_head, prepared.adapters, prepared.tensors)

    def _tell_what_trains(self, prepared: Prepared, labels: int | None) -> None:
        """Write down what the passes of a method train, so that they can be counted even if this process dies."""
        told = {
            "trained_submodules": list(prepared.trained_submodules),
            "adapters": None if prepared.adapters is None else dict(prepared.adapters),
            "tensors": None if prepared.tensors is None else dict(prepared.tensors),
            "new_head": bool(self.loaded.partition.new_head),
            "uncounted": prepared.uncounted,
            "labels": labels,
        }
        self._file(TRAINS).write_text(json.dumps(told), encoding="utf-8")

    def _save(self, trained: Mapping[str, Any], prepared: Prepared) -> None:
        if self.job["save"] == "none" or self.engine.rank > 0:
            return
        from safetensors.torch import save_file

        from cprbench.adapt.checkpoints import DELTA

        tensors = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
        save_file(tensors, str(self.folder / DELTA))
        if self.job["save"] == "model":
            from cprbench.adapt.export import save_merged

            config, target = prepared.notes.get("adapter_config"), self.folder / "model"
            save_merged(self.spec, self.job["model"], tensors, target, self.loaded.labels, adapter_config=config)


def _seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _apart(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a selection's notes as the record keeps them: T beside the rest."""
    own = {key: value for key, value in notes.items() if key != "cross_influence"}
    beside = {key: value for key, value in notes.items() if key == "cross_influence"}
    return {**({"selection": own} if own else {}), **beside}


def _unchanged(what: str, actual: str, planned: str) -> None:
    if actual != planned:
        raise TrainingError(f"{what} is {actual} now and was {planned} when the run was planned: start again.")
