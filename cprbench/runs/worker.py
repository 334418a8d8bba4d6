"""The child process of one run: loads, chooses, trains and scores, and tells the parent when phases change.

Started as `python -m cprbench.runs.worker JOB.json READ_FD WRITE_FD`. It measures no cost itself beyond its own
clock and its CUDA allocator; the parent does, from outside.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cprbench.errors import CprbenchError, TrainingError
from cprbench.meters.flops import Flops, Pass, Trained, pass_flops, supported
from cprbench.meters.tree import AllocatorMeter
from cprbench.runs.channel import TRAINS, Channel
from cprbench.runs.inspection import folder_of, inspect, labels_of, rates
from cprbench.spec import BILLED_PHASES, Phase, Reading, RunSpec, TaskSpec, stream_seed

_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> None:
    """Stop glibc from returning freed gradients to the kernel at every step (5 x on a 135M model)."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, _NEVER_TRIM)  # M_TRIM_THRESHOLD
        except OSError:  # another libc: slower, not wrong
            return


def main(job_path: str, read_fd: int, write_fd: int) -> None:
    """Run one job; every failure becomes an event, so that the parent can write the record."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    keep_freed_memory()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    channel = Channel(read_fd, write_fd)
    channel.at_end = AllocatorMeter().edge
    if "launched" in job:
        channel.adopt("setup", job["launched"])
    try:
        match job["kind"]:
            case "inspect":
                result = inspect(job)
            case "rates":
                result = rates()
            case "blueprint" | "audit":
                from cprbench.runs.survey import Survey

                result = Survey(job, channel).run()
            case "scores":
                from cprbench.runs.appraiser import Appraiser

                result = Appraiser(job, channel).run()
            case _:
                result = Session(job, channel).run()
        channel.send("result", result=result)
    except CprbenchError as error:
        channel.send("error", status="failed", kind=type(error).__name__, message=str(error))
    except Exception as error:
        status = "out_of_memory" if _is_out_of_memory(error) else "failed"
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        channel.send("error", status=status, kind=type(error).__name__, message=message)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "Cannot allocate memory" in text
    )


class Session:
    """One run from loading to the final score."""

    def __init__(self, job: Mapping[str, Any], channel: Channel) -> None:
        self.job = job
        self.channel = channel
        self.spec = RunSpec.model_validate(job["spec"])
        self.task = TaskSpec.model_validate(job["task"])
        self.recipe = self.spec.training
        self.folder = Path(job["folder"])
        self.history = (self.folder / "history.jsonl").open("w", encoding="utf-8", buffering=1)
        self.work = (self.folder / "work.jsonl").open("w", encoding="utf-8", buffering=1)
        self.spent = Flops()  # billed so far, what was taken over from earlier runs included
        self.steps_done = 0
        self.seen: list[list[Any]] = []  # batches that were trained on while choosing
        self.steps: int | None = None  # of the whole run; None while only its selection can tell

    def run(self) -> dict[str, Any]:
        """Return what the record keeps of this run besides its costs."""
        from cprbench.adapt import data, models, objectives, training
        from cprbench.adapt.checkpoints import resolve
        from cprbench.adapt.methods import build_method
        from cprbench.adapt.selection import build_selection
        from cprbench.adapt.settings import unpinned
        from cprbench.meters import hardware
        from cprbench.runs.measuring import Measuring

        spec, recipe, channel = self.spec, self.recipe, self.channel
        _seed_everything(spec.seed)
        dataset = data.load_dataset(self.task, data=folder_of(self.job["data"]), offline=self.job["offline"])
        checkpoint = resolve(self.job["model"], offline=self.job["offline"])
        _unchanged("data_sha256", dataset.sha256, spec.task.data_sha256)
        _unchanged("weights_sha256", checkpoint.weights_sha256, spec.model.weights_sha256)
        self.engine = training.Engine.start(recipe.precision, bf16_is_fast=hardware.bf16_is_fast())
        labels = labels_of(self.task, dataset.choices, checkpoint.kind)
        self.loaded = models.load(checkpoint, labels, spec.seed, recipe.attention)
        self.loaded.model.to(self.engine.device)
        self.objective = objectives.objective_for(self.loaded)
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
        settings = unpinned("selection", spec.selection.settings, files["selection"])
        selection = build_selection(spec.selection.name, settings)
        kept = selection.kept(len(chosen))
        self.steps = None if kept is None else self._steps_on(kept)
        measuring = Measuring(self, chosen, self.items)
        with channel.phase("select") if method.chooses or selection.chooses else nullcontext():
            prepared = method.prepare(self.loaded, measuring.context())
            self.trained = self._trained(prepared)
            self._tell_what_trains(prepared, labels)
            selected = selection.select(measuring.pool(prepared))
            self.batches = self._batches(selected, measuring)
        id_of = {id(item): example.id for item, example in zip(self.items, chosen, strict=True)}
        chosen = tuple(chosen[i] for i in selected.places)
        rest = self.batches[self.steps_done :]
        trained_on = [[id_of[id(item)] for item in batch] for batch in (*self.seen, *rest)]
        batches_sha256 = hashlib.sha256("\n".join(map(" ".join, trained_on)).encode()).hexdigest()
        _seed_everything(stream_seed(spec.seed, "dropout"))
        with channel.phase("train"):
            rate = float(recipe.learning_rate or 0.0)
            optimizer_bytes = training.train(
                self.loaded,
                self.objective,
                self.engine,
                rest,
                recipe,
                rate,
                self.after_step("train", "method"),
            )
        final = None if is_search else self._score_test("predictions.jsonl", adapted=True)
        trained = {n: p for n, p in self.loaded.model.named_parameters() if p.requires_grad}
        new_head = set(self.loaded.partition.new_head)
        self._save(trained)
        return {
            "psi": {
                "primary": self.task.primary,
                "base": base,
                "final": final,
                "items": 0 if is_search else len(self.test),
                "validation": self.last_validation,
            },
            "trained_parameters": sum(p.numel() for n, p in trained.items() if n not in new_head),
            "total_parameters": self.loaded.partition.total,
            "new_head_parameters": sum(p.numel() for n, p in trained.items() if n in new_head),
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
                "steps": len(self.batches),
                "warmup_steps_of_head": self.steps_done - len(rest),
                "examples_trained_on": len({i for batch in trained_on for i in batch}),
                "truncated_examples": sum(i.truncated for i in (*self.items, *self.test_items)),
                "labels": labels,
            },
            "device": str(self.engine.device.type),
        }

    # --- the plan -----------------------------------------------------------------------------------

    def planned(self, places: Sequence[int], epochs: int | None = None) -> list[list[Any]]:
        """Return the batches of a run on these places of the pool."""
        from cprbench.adapt import training

        items = [self.items[i] for i in places]
        recipe = self.recipe
        lengths = [item.length for item in items]
        plan = training.plan_batches(lengths, recipe.batch_size, epochs or recipe.epochs, self.spec.seed)
        return [[items[i] for i in batch] for batch in plan]

    def _steps_on(self, examples: int) -> int:
        return self.recipe.epochs * math.ceil(examples / self.recipe.batch_size)

    def afford_steps(self, steps: int, what: str) -> None:
        """Raise TrainingError where so many more steps leave none to train."""
        if self.steps == 0:
            raise TrainingError("selection.flops pays for no step after what choosing costs. Raise it.")
        if self.steps is not None and self.steps_done + steps >= self.steps:
            raise TrainingError(
                f"the run has {self.steps} steps and {what} takes {self.steps_done + steps} of them, so none is left "
                "to train. Train on more examples or epochs, or lower it."
            )

    def _batches(self, selected: Any, measuring: Any) -> list[list[Any]]:
        """Return all batches of the run; `rest` of them are trained after what the choice has used up."""
        batches = self.planned(selected.places)
        if selected.flops is not None:
            epochs, left = self.recipe.epochs, selected.flops - self.spent.total
            while measuring.cost(batches[self.steps_done :]) < left:
                epochs *= 2
                batches = self.planned(selected.places, epochs)
            low, high = self.steps_done, len(batches)
            while low < high:  # the last step that the bill has room for
                middle = (low + high + 1) // 2
                fits = measuring.cost(batches[self.steps_done : middle]) <= left
                low, high = (middle, high) if fits else (low, middle - 1)
            batches = batches[:low]
        self.steps = len(batches)
        self.afford_steps(0, "choosing")
        return batches

    # --- phases -------------------------------------------------------------------------------------

    last_validation: dict[str, float] | None = None

    def after_step(self, phase: Phase, trains: str) -> Callable[[int, float, Any], None]:
        grid, steps = self.recipe.validations, self.steps or 0
        validated = {math.ceil(steps * (i + 1) / grid) for i in range(grid)} | {steps}

        def after_step(step: int, loss: float, shape: Any) -> None:
            self.count(phase, trains, shape, backward=True)
            self.steps_done += 1
            row: dict[str, Any] = {
                "step": self.steps_done,
                "phase": phase,
                "t": time.monotonic(),
                "seconds": round(self.channel.billed_seconds(BILLED_PHASES), 6),
                "loss": loss,
                "flops": self.spent.total,
            }
            if self.held_out_items and self.steps_done in validated:
                row["validation"] = self._validate()
            self.history.write(json.dumps(row) + "\n")
            of = self.steps or self._steps_on(len(self.items))  # while nobody knows, as many as all data take
            self.channel.send("step", step=self.steps_done, of=of, loss=loss, **AllocatorMeter().sample())

        return after_step

    def _validate(self) -> dict[str, float]:
        from cprbench.adapt.scoring import psi

        with self.channel.phase("validate"):
            found = self._predict(self.held_out, self.held_out_items, "validate", adapted=True)
            self.last_validation = psi(found, self.task.metrics)
        return self.last_validation

    def _score_test(self, name: str, *, adapted: bool) -> dict[str, float]:
        from cprbench.adapt.scoring import psi

        with self.channel.phase("score"):
            found = self._predict(self.test, self.test_items, "score", adapted=adapted)
            lines = [json.dumps(p.row(), ensure_ascii=False, allow_nan=False) + "\n" for p in found]
            (self.folder / name).write_text("".join(lines), encoding="utf-8")
            return psi(found, self.task.metrics)

    def _predict(self, examples: Sequence[Any], items: Sequence[Any], phase: Phase, *, adapted: bool) -> list[Any]:
        from cprbench.adapt import scoring, training

        found: dict[int, Any] = {}
        size = self.recipe.score_batch_size
        for values, shape in training.score(self.loaded, self.objective, items, size):
            self.count(phase, "method" if adapted else "nothing", shape, backward=False)
            found.update({i: scoring.predict(examples[i], v) for i, v in values})
            self.channel.send("progress", phase=phase, done=len(found), of=len(items))
        return [found[i] for i in range(len(items))]

    # --- accounts -----------------------------------------------------------------------------------

    trained: Trained | None = None

    def _trained(self, prepared: Any) -> Trained:
        new_head = bool(self.loaded.partition.new_head)
        return Trained(frozenset(prepared.trained_submodules), new_head, prepared.adapters, prepared.tensors)

    def count(self, phase: Phase, trains: str, shape: Any, *, backward: bool, extra: int = 0) -> None:
        """Enter a pass into work.jsonl and, where it is billed, into the running FLOPs."""
        trains = trains if self.trained is not None or trains != "method" else "nothing"
        extra += self._adapters(shape) * {"method": 0, "activations": 2}.get(trains, 1)
        done = Pass(
            phase=phase,
            attempt=self.job["attempt"],
            backward=backward,
            trains=trains,  # type: ignore[arg-type]
            extra_flops=extra,
            **asdict(shape),
        )
        self.work.write(done.line() + "\n")
        config = self.spec.model.config
        if phase in BILLED_PHASES and supported(config) is None:
            trained = self.trained or Trained(frozenset(), bool(self.loaded.partition.new_head))
            self.spent += pass_flops(config, self.spec.model.kind, self.loaded.labels, trained, done)

    def _adapters(self, shape: Any) -> int:
        """Return the FLOPs of a forward pass through the method's adapters: once they are in, every pass has it."""
        trained, model = self.trained, self.spec.model
        if trained is None or trained.lora is None or supported(model.config) is not None:
            return 0
        bare = Trained(frozenset(), trained.new_head)
        done = Pass(phase="select", attempt=1, backward=False, trains="method", **asdict(shape))
        through, beside = (pass_flops(model.config, model.kind, self.loaded.labels, t, done) for t in (trained, bare))
        return through.total - beside.total

    def bill_again(self, readings: Sequence[Reading]) -> None:
        """Put what was measured by an earlier run on this one's running account."""
        for reading in readings:
            if reading.phase == "select" and reading.quantity == "flops" and reading.value is not None:
                self.spent += Flops(int(reading.value), int(reading.detail.get("padding", 0)))
            if reading.phase == "select" and reading.quantity == "seconds" and reading.value is not None:
                self.channel.seconds["select"] = self.channel.seconds.get("select", 0.0) + reading.value

    def _tell_what_trains(self, prepared: Any, labels: int | None) -> None:
        """Write down what the passes of a method train, so that they can be counted even if this process dies."""
        told = {
            "trained_submodules": list(prepared.trained_submodules),
            "adapters": None if prepared.adapters is None else dict(prepared.adapters),
            "tensors": None if prepared.tensors is None else dict(prepared.tensors),
            "new_head": bool(self.loaded.partition.new_head),
            "labels": labels,
        }
        (self.folder / TRAINS).write_text(json.dumps(told), encoding="utf-8")

    def _save(self, trained: Mapping[str, Any]) -> None:
        if self.job["save"] == "none":
            return
        from safetensors.torch import save_file

        from cprbench.adapt.checkpoints import DELTA

        tensors = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
        save_file(tensors, str(self.folder / DELTA))
        if self.job["save"] == "model":
            from cprbench.adapt.export import save_merged

            save_merged(self.spec, self.job["model"], tensors, self.folder / "model", self.loaded.labels)


def _seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import numpy
    import torch

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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # interpreter shutdown of torch threads is no part of any run
