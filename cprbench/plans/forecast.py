"""What runs would take, before any of them has run: bytes, FLOPs and, on a named board, hours, kWh and CO2.

Everything here is modelled: counted from a model's config, a task's recipe and shapes that are upper bounds (every
sequence as long as max_tokens). Imports no torch, so that a plan needs neither weights nor the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cprbench.adapt.configs import Config
from cprbench.adapt.data import load_dataset
from cprbench.adapt.methods import Probe, Target
from cprbench.errors import DataError, MethodError, OfflineError, SpecError, TrainingError
from cprbench.meters import hardware
from cprbench.meters.carbon import NO_FACTORS, CarbonFactors
from cprbench.meters.flops import Pass, Trained, Trains, count
from cprbench.plans.activations import Step
from cprbench.plans.boards import Board
from cprbench.plans.footprint import STATE_BYTES, STATE_BYTES_WITH_MASTER_COPY, Footprint, footprint
from cprbench.plans.parameters import Layout, layout
from cprbench.plans.trained_sets import TrainedSet, trained_sets
from cprbench.runs.arms import Arm
from cprbench.spec import TaskSpec, TrainingSpec

#: States of frozen layers that a run keeps over epochs: in memory up to here, on disk up to there (adapt.prefix).
_CACHE_MEMORY, _CACHE_DISK = 2 << 30, 16 << 30


@dataclass(frozen=True)
class Questions:
    """What a plan needs to know of a task's data. `examples`: None where neither the data nor the task tell."""

    examples: int | None
    labels: int | None  # None: every row brings its own choices
    answer_tokens: int | None  # of the longest choice, as words: no tokenizer is read; None: a text, so all tokens
    why: str = ""  # the data were not read


@dataclass(frozen=True)
class Machine:
    """Where the runs would run: this CPU, or a GPU, named or not. `utilisation`: the share of its peak FLOP/s."""

    board_name: str | None = None
    board: Board | None = None
    utilisation: float = 0.4
    carbon: CarbonFactors | None = None
    on_gpu: bool = False

    def precision(self, asked: str) -> Literal["fp32", "bf16"]:
        """Return what "auto" becomes there: bf16 where the hardware multiplies it natively."""
        if asked in ("fp32", "bf16"):
            return asked  # type: ignore[return-value]
        if self.on_gpu:
            return "bf16" if self.board is None or self.board.bf16_flops is not None else "fp32"
        return "bf16" if hardware.bf16_is_fast() else "fp32"


def questions_of(task: TaskSpec, *, data: Path | None, offline: bool) -> Questions:
    """Return what planning needs of a task's data; from the task file where the data are absent.

    Raises what reading raises where the task file alone does not tell the choices.
    """
    text = task.example.kind == "text"
    try:
        dataset = load_dataset(task, data=data, offline=offline)
    except (DataError, OfflineError) as error:
        if not text and task.example.choices is None and task.example.choices_column is None:
            raise
        choices = task.example.choices
        why = str(error).splitlines()[0]
        labels, words = choices and len(choices), None if text else _words(choices)
        return Questions(task.splits.counts.get("train"), labels, words, why)  # type: ignore[arg-type]
    fixed = dataset.choices
    longest = fixed or [choice for example in dataset.train for choice in example.choices]
    return Questions(len(dataset.train), None if fixed is None else len(fixed), None if text else _words(longest))


def _words(choices: Sequence[str] | None) -> int:
    return max((len(re.findall(r"[^\W_]+", choice)) for choice in choices or ()), default=1) or 1


def plan_model(
    model: Config, arms: Sequence[Arm], task: TaskSpec, recipe: TrainingSpec, found: Questions, machine: Machine
) -> dict[str, Any]:
    """Return the rows of one model, one per arm. An arm that cannot run there is a row with the reason.

    Raises ModelError for an architecture that is not known, TrainingError for a task that this kind cannot answer.
    """
    if model.kind == "encoder" and found.labels is None:
        raise TrainingError(
            f"task {task.name!r} brings its own choices with every row, which a classification head cannot answer. "
            "Plan it with a causal model."
        )
    labels = found.labels if model.kind == "encoder" else None
    parts = layout(model.config, model.kind, labels)
    one = _Model(model, parts, labels, recipe, found, machine)
    return {
        "model": model.label,
        "source": model.source,
        "kind": model.kind,
        "parameters": parts.total,
        "precision": machine.precision(recipe.precision),
        "rows": [one.row(arm) for arm in arms],
    }


class _Model:
    """One model on one task, arm by arm."""

    def __init__(
        self,
        model: Config,
        parts: Layout,
        labels: int | None,
        recipe: TrainingSpec,
        found: Questions,
        machine: Machine,
    ) -> None:
        self._model, self._labels, self._recipe, self._machine = model, labels, recipe, machine
        self._new_head = bool(parts.new_head)
        self._precision = machine.precision(recipe.precision)
        self._layers = sum(cell.startswith("attn.") for cell in parts.sizes)
        self._hidden = next(iter(parts.tensors["embed"].values()))[1]
        self._target = Target(
            model.kind,
            parts.sizes,
            parts.names,
            label=model.label,
            probe=Probe(recipe.select_batch_size, recipe.select_warmup_steps),
            device="cuda" if machine.on_gpu else "cpu",
            bitsandbytes=True,
        )
        # A causal model's last token predicts nothing, so it is not read.
        self._length = recipe.max_tokens - (model.kind == "causal")
        self._rows = (found.answer_tokens or self._length) if model.kind == "causal" else 1
        known = [n for n in (found.examples, recipe.max_examples) if n is not None]
        self._examples = min(known) if known else None

    def row(self, arm: Arm) -> dict[str, Any]:
        """Return what an arm would take, or why it cannot run."""
        named = {"arm": arm.label, "method": arm.method.name, "k_asked": getattr(arm.method, "k", None)}
        try:
            sets = trained_sets(arm.method, self._target, self._model.config, new_head=self._new_head)
            shown, *other = [self._taken(arm, one) for one in sets]
        except (MethodError, SpecError, TrainingError) as error:
            return {**named, "why_not": str(error)}
        return {**named, **shown, "best_case": other[0] if other else None}

    def _taken(self, arm: Arm, one: TrainedSet) -> dict[str, Any]:
        recipe, on_gpu = self._recipe, self._machine.on_gpu
        first = self._first_layer(one.trained)
        cached, cache_bytes = self._cache(first)
        found = footprint(
            self._model.config,
            self._model.kind,
            self._labels,
            one.trained,
            replace(self._step(self._at_most(recipe.batch_size)), **self._way(arm)),
            optimizer=recipe.optimizer,
            checkpointing=recipe.gradient_checkpointing,
            score=self._step(min(recipe.score_batch_size, recipe.eval_items or recipe.score_batch_size)),
            probe=self._step(self._at_most(recipe.select_batch_size)) if one.measures else None,
            cache=cache_bytes,
        )
        flops = self._flops(one, first, cached)
        return {
            "set": {"worst": "worst case", "best": "best case", "": "known"}[one.bound],
            "k_reached": one.k_reached,
            **_bytes(found, on_gpu),
            **self._spent(flops),
        }

    def _way(self, arm: Arm) -> dict[str, Any]:
        dropout = getattr(arm.method, "dropout", 0.0) > 0
        return {"four_bit": getattr(arm.method, "four_bit", False), "adapter_dropout": dropout}

    def _at_most(self, batch: int) -> int:
        return min(batch, self._examples or batch)

    def _step(self, batch: int) -> Step:
        return Step(
            batch,
            self._length,
            batch * self._rows,
            precision=self._precision,
            attention=self._recipe.attention,
            on_gpu=self._machine.on_gpu,
        )

    # --- passes -------------------------------------------------------------------------------------

    def _first_layer(self, trained: Trained) -> int:
        """Return the lowest layer that the backward pass reaches; their number where it reaches none."""
        layers = [int(cell.partition(".")[2]) for cell in trained.cells if "." in cell]
        plain = trained.lora is None
        return 0 if plain and "embed" in trained.cells else min(layers, default=self._layers)

    def _cache(self, first: int) -> tuple[bool, int]:
        """Return whether a run would keep states of the frozen layers below, and the bytes of memory for it."""
        recipe = self._recipe
        mode = recipe.cache_prefix
        if mode == "off" or first == 0 or recipe.compile or recipe.epochs == 1 or self._examples is None:
            return False, 0
        width = 2 if self._precision == "bf16" else 4
        needed = width * self._hidden * self._length * self._examples
        if mode == "memory" or (mode == "auto" and needed <= _CACHE_MEMORY):
            return True, min(needed, _CACHE_MEMORY)
        return mode == "disk" or needed <= _CACHE_DISK, 0

    def _flops(self, one: TrainedSet, first: int, cached: bool) -> int | None:
        """Return the billed FLOPs of a run; None where nobody knows how many examples there are.

        Raises TrainingError where warming the head leaves no step to train.
        """
        n, recipe = self._examples, self._recipe
        if n is None:
            return None
        if n == 0:
            raise TrainingError(
                "zero training examples: nothing can be learned from none. Raise training.max_examples."
            )
        size = min(recipe.batch_size, n)
        steps = recipe.epochs * math.ceil(n / recipe.batch_size)
        passes: list[Pass] = []
        warm = recipe.select_warmup_steps if one.measures and self._new_head else 0
        if warm >= steps:
            raise TrainingError(
                f"the run has {steps} steps and select.warmup_steps takes {warm} of them, so none is left to train. "
                "Train on more examples or epochs, or lower it."
            )
        if warm:
            passes.append(self._pass(size, warm, "head"))
        if one.measures:
            batch = min(recipe.select_batch_size, n)
            batches = min(recipe.select_batches, math.ceil(n / batch))
            passes.append(self._pass(batch, batches, "all"))
        whole, rest = divmod(n, size)
        for batch, times, new in ((size, recipe.epochs * whole - warm, whole), (rest, recipe.epochs, 1)):
            if batch and times > 0:
                passes += self._training(self._pass(batch, times, "method"), min(new, times), first, cached)
        found = count(self._model.config, self._model.kind, self._labels, one.trained, passes)
        return sum(part.total for part in found.values())

    def _training(self, step: Pass, new: int, first: int, cached: bool) -> list[Pass]:
        """Return the passes of training steps; `new` of them see their examples for the first time."""
        found = [step]
        if cached:
            found = [replace(step, backward=False, last_layer=first, times=new), replace(step, first_layer=first)]
        if self._recipe.gradient_checkpointing and first < self._layers:
            found.append(replace(step, backward=False, first_layer=first, last_layer=self._layers, recompute=True))
        return found

    def _pass(self, batch: int, times: int, trains: Trains) -> Pass:
        positions = batch * self._length
        return Pass(
            phase="train",
            attempt=1,
            backward=True,
            trains=trains,
            batch=batch,
            length=self._length,
            tokens=positions,
            scored=batch * self._rows,
            times=times,
        )

    def _spent(self, flops: int | None) -> dict[str, Any]:
        """Return FLOPs, hours, kWh and kg of CO2; None with a reason for what is not known."""
        machine, why = self._machine, {}
        hours = kwh = co2 = None
        if flops is None:
            why["flops"] = "the number of training examples is not known: pass --data, or training.max_examples"
        if machine.board is None:
            why["hours"] = why["kwh"] = why["co2_kg"] = "no --hardware is named"
        elif flops is None:
            why["hours"] = why["kwh"] = why["co2_kg"] = why["flops"]
        else:
            hours = flops / (machine.utilisation * machine.board.rate(self._precision)) / 3600
            kwh = hours * machine.board.watts / 1000
            if machine.carbon is None:
                why["co2_kg"] = NO_FACTORS
            else:
                co2 = machine.carbon.kilograms(kwh)
        return {"flops": flops, "hours": hours, "kwh": kwh, "co2_kg": co2, "why_missing": why}


def _bytes(found: Footprint, on_gpu: bool) -> dict[str, Any]:
    return {
        "trained_parameters": found.trained_parameters,
        "new_head_parameters": found.new_head_parameters,
        "frozen_parameters": found.frozen_parameters,
        "weight_bytes": found.weights,
        "gradient_bytes": found.gradients,
        "optimizer_bytes": found.optimizer,
        "activation_bytes": found.activations,
        "temporary_bytes": found.temporaries,
        "cache_bytes": found.cache,
        "peak_bytes": found.peak if on_gpu else found.resident,
        "peak_in": "select" if found.peak_is_probe else "train",
        "frozen_state_bytes": frozen_state(found.frozen_parameters),
    }


def frozen_state(parameters: int) -> dict[str, int]:
    """Return the bytes of optimizer state that frozen parameters do without, by convention."""
    return {
        "two float32 moments": STATE_BYTES["adamw"] * parameters,
        "two float32 moments and a float32 master copy": STATE_BYTES_WITH_MASTER_COPY * parameters,
    }


def document(
    models: Sequence[Config],
    arms: Sequence[Arm],
    task: TaskSpec,
    recipe: TrainingSpec,
    found: Questions,
    machine: Machine,
    limit: int | None,
) -> dict[str, Any]:
    """Return the plan as one JSON document (cprbench.plan/1). `limit`: bytes that a peak may take, for a sheet.

    Raises the reason of the first arm when no arm can run on any model.
    """
    tables = [plan_model(model, arms, task, recipe, found, machine) for model in models]
    rows = [row for table in tables for row in table["rows"]]
    if all("why_not" in row for row in rows):
        raise MethodError(f"{rows[0]['arm']}: {rows[0]['why_not']}")
    for row in rows:
        if limit is not None and "why_not" not in row:
            for one in filter(None, (row, row["best_case"])):
                one["fits"] = one["peak_bytes"] <= limit
    board = machine.board
    return {
        "schema": "cprbench.plan/1",
        "source": "modelled",
        "task": {"name": task.name, "version": task.version, "examples": found.examples, "why_missing": found.why},
        "training": recipe.model_dump(mode="json"),
        "memory": "CUDA allocator" if machine.on_gpu else "RSS of the training child on a CPU",
        "fits_bytes": limit,
        "hardware": None
        if board is None
        else {
            "name": machine.board_name,
            "memory_bytes": board.memory_bytes,
            "flops_per_second": {"bf16": board.bf16_flops, "fp32": board.fp32_flops},
            "watts": board.watts,
            "data_sheet": board.source,
            "utilisation": machine.utilisation,
            "carbon": machine.carbon.facts() if machine.carbon is not None else None,
        },
        "models": tables,
    }
