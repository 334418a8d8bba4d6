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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cprbench.errors import CprbenchError, TrainingError
from cprbench.meters.tree import AllocatorMeter
from cprbench.runs.channel import TRAINS, Channel
from cprbench.runs.inspection import folder_of, inspect, labels_of, rates
from cprbench.spec import BILLED_PHASES, Phase, RunSpec, TaskSpec, stream_seed

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
        self.flops = 0
        self.steps_done = 0

    def run(self) -> dict[str, Any]:
        """Return what the record keeps of this run besides its costs."""
        from cprbench.adapt import data, models, objectives, training
        from cprbench.adapt.checkpoints import resolve
        from cprbench.adapt.methods import build_pinned
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
        train_items = objectives.tokenize(self.loaded, chosen, recipe.max_tokens)
        self.test_items = objectives.tokenize(self.loaded, self.test, recipe.max_tokens)
        self.held_out_items = objectives.tokenize(self.loaded, self.held_out, recipe.max_tokens)
        plan = training.plan_batches([i.length for i in train_items], recipe.batch_size, recipe.epochs, spec.seed)
        self.batches = [[train_items[i] for i in batch] for batch in plan]
        batches_sha256 = hashlib.sha256(
            "\n".join(" ".join(chosen[i].id for i in batch) for batch in plan).encode()
        ).hexdigest()

        is_search = self.job["role"] == "search"  # the test split is for the chosen rate only
        base = None if is_search else self._score_test("base_predictions.jsonl", adapted=False)
        method = build_pinned(spec.method.name, spec.method.settings, self.job["files"])
        context = Measuring(self, train_items).context()
        if method.chooses:
            with channel.phase("select"):
                prepared = method.prepare(self.loaded, context)
        else:
            prepared = method.prepare(self.loaded, context)
        self.trained = self._trained(prepared)
        self._tell_what_trains(prepared, labels)

        rest = self.batches[self.steps_done :]
        if not rest:
            raise TrainingError(
                f"the run has {len(self.batches)} steps and select.warmup_steps takes all of them. "
                "Train on more examples or epochs, or lower select.warmup_steps."
            )
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
                "precision": self.engine.precision,
                "steps": len(self.batches),
                "warmup_steps_of_head": self.steps_done - len(rest),
                "truncated_examples": sum(i.truncated for i in (*train_items, *self.test_items)),
                "labels": labels,
            },
            "device": str(self.engine.device.type),
        }

    # --- phases -------------------------------------------------------------------------------------

    last_validation: dict[str, float] | None = None

    def after_step(self, phase: Phase, trains: str) -> Callable[[int, float, Any], None]:
        grid, steps = self.recipe.validations, len(self.batches)
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
                "flops": self.flops,
            }
            if self.held_out_items and self.steps_done in validated:
                row["validation"] = self._validate(adapted=phase == "train")
            self.history.write(json.dumps(row) + "\n")
            self.channel.send(
                "step", step=self.steps_done, of=len(self.batches), loss=loss, **AllocatorMeter().sample()
            )

        return after_step

    def _validate(self, *, adapted: bool) -> dict[str, float]:
        from cprbench.adapt.scoring import psi

        with self.channel.phase("validate"):
            found = self._predict(self.held_out, self.held_out_items, "validate", adapted=adapted)
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

    trained: Any = None

    def _trained(self, prepared: Any) -> Any:
        from cprbench.meters.flops import Trained

        new_head = bool(self.loaded.partition.new_head)
        return Trained(frozenset(prepared.trained_submodules), new_head, prepared.adapters, prepared.tensors)

    def count(self, phase: Phase, trains: str, shape: Any, *, backward: bool, extra: int = 0) -> None:
        """Enter a pass into work.jsonl and, where it is billed, into the running FLOPs."""
        from cprbench.meters.flops import Pass, Trained, pass_flops, supported

        trains = trains if self.trained is not None or trains != "method" else "nothing"
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
            self.flops += pass_flops(config, self.spec.model.kind, self.loaded.labels, trained, done).total

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


def _unchanged(what: str, actual: str, planned: str) -> None:
    if actual != planned:
        raise TrainingError(f"{what} is {actual} now and was {planned} when the run was planned: start again.")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # interpreter shutdown of torch threads is no part of any run
