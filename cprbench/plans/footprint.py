"""How many bytes training takes, from a model's config and from what trains. Imports no torch; all of it is modelled.

Weights, gradients and optimizer state follow from counts of parameters: all three are float32, autocast changes what
is computed in and not what is held. Activations are those of `activations`. The highest point of a step is found by
walking it backwards: activations go from the top while gradients grow, so it is no sum of the columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cprbench.meters.flops import Kind, Trained, plan_of, ranks_in
from cprbench.plans.activations import FP32, Stage, Step, stages
from cprbench.plans.parameters import layout

#: State of an optimizer, bytes per trained parameter: two moments, of 4 bytes each or quantised to 1.
STATE_BYTES = {"adamw": 8, "adamw8bit": 2}
#: The same where 16-bit weights also have a float32 master copy: two moments and that copy. cprbench holds float32
#: weights and needs none; the paper's "67 GB" (7B model, 80 % frozen) are 5.6e9 x 12.
STATE_BYTES_WITH_MASTER_COPY = 12
#: Bytes of a weight in nf4 with double quantisation: 4 bits, and 0.127 bits of block constants (QLoRA, section 3).
NF4_BYTES = 0.5 + 0.127 / 8
#: What a training child holds besides the model on a CPU: the interpreter, torch, transformers, what oneDNN keeps.
#: Measured as the peak RSS of MiniLM x movie-snippets x head without its weights and what scoring works with.
RUNTIME_BYTES = 480_000_000
#: RSS per byte that is allocated and freed in a step, on a CPU: the heap is never given back (sessions.worker), and
#: batches of other lengths leave holes in it. Measured as (peak RSS - runtime - weights - optimizer) / modelled bytes:
#: 1.7 for MiniLM (full), 2.0 (lora), 1.6 for SmolLM2-135M (full), 2.0 (last-layers).
HEAP_FACTOR = 1.7


@dataclass(frozen=True)
class Footprint:
    """Bytes of training. `activations`: all that autograd keeps at the end of a forward pass; `temporaries`: the
    widest moment of one submodule, a rough estimate; `cache`: states of frozen layers that are kept over epochs;
    `working`: the most that activations, gradients and temporaries take at one time, scoring included; `probe`: the
    same while gradient norms are measured before training, when there is no optimizer yet.
    """

    trained_parameters: int  # adapters included, a new task head excluded
    new_head_parameters: int
    frozen_parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    working: int
    cache: int = 0
    probe: int = 0

    @property
    def peak(self) -> int:
        """The most that is allocated at one time: what torch's CUDA allocator calls its peak."""
        return self.weights + max(self.optimizer + self.cache + self.working, self.probe)

    @property
    def peak_is_probe(self) -> bool:
        """Whether measuring gradient norms takes more than training."""
        return self.probe > self.optimizer + self.cache + self.working

    @property
    def resident(self) -> int:
        """The peak RSS of a training child on a CPU, interpreter and libraries included."""
        training = self.optimizer + self.cache + HEAP_FACTOR * self.working
        return RUNTIME_BYTES + self.weights + round(max(training, HEAP_FACTOR * self.probe))


def footprint(
    config: Mapping[str, Any],
    kind: Kind,
    labels: int | None,
    trained: Trained,
    step: Step,
    *,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    score: Step | None = None,
    probe: Step | None = None,
    cache: int = 0,
) -> Footprint:
    """Return the bytes of training what `trained` says on batches of `step`.

    `checkpointing`: layers keep their input alone and are computed again, one at a time. `score`: batches that are
    scored between steps, in float32 and without gradients. `probe`: batches on which the gradients of all submodules
    are measured before. Raises ModelError for an architecture that is not known.
    """
    counts = _Counts(config, kind, labels, trained)
    passed = stages(config, kind, labels, trained, step)
    gradients = FP32 * counts.trained
    working = max(_highest(passed, counts, checkpointing=checkpointing), gradients)
    if score is not None:
        plain = replace(score, precision="fp32", drops=False)
        nothing = Trained(frozenset(), new_head=False)
        working = max(working, *(stage.work for stage in stages(config, kind, labels, nothing, plain)))
    kept = _checkpointed(passed) if checkpointing else [stage.kept for stage in passed]
    return Footprint(
        trained_parameters=counts.trained - counts.new_head,
        new_head_parameters=counts.new_head,
        frozen_parameters=counts.total - sum(counts.own.values()),
        weights=counts.weights(four_bit=step.four_bit),
        gradients=gradients,
        optimizer=STATE_BYTES[optimizer] * counts.trained,
        activations=sum(kept),
        temporaries=max(stage.work for stage in passed),
        working=working,
        cache=cache,
        probe=0 if probe is None else _probed(config, kind, labels, probe),
    )


def _probed(config: Mapping[str, Any], kind: Kind, labels: int | None, step: Step) -> int:
    """Return the most bytes while gradients of all submodules are measured: each goes when it was looked at."""
    everything = Trained(plan_of(config, kind, labels).cells(), new_head=kind == "encoder")
    counts = _Counts(config, kind, labels, everything)
    passed = stages(config, kind, labels, everything, replace(step, drops=False))
    return _highest(passed, counts, checkpointing=False, stream=True)


class _Counts:
    """Parameters of a model by what happens to them."""

    def __init__(self, config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained) -> None:
        whole = layout(config, kind, labels)
        self.total, self._whole_head = whole.total, whole.new_head_size
        self.new_head = whole.new_head_size if trained.new_head else 0
        self.own = dict.fromkeys(whole.sizes, 0)
        self._adapters = dict.fromkeys(whole.sizes, 0)
        self._linears = 0
        for cell, shapes in whole.tensors.items():
            if trained.tensors is not None:
                ends = trained.tensors.get(cell, ())
                shapes = {n: s for n, s in shapes.items() if any(f".{n}".endswith(f".{end}") for end in ends)}
            elif trained.lora is not None or cell not in trained.cells:
                continue
            self.own[cell] = sum(map(math.prod, shapes.values()))
        for cell, linears in plan_of(config, kind, labels).walk():
            ranks = ranks_in(cell, trained.lora or {}) if cell in trained.cells else {}
            self._linears += sum(linear.inputs * linear.outputs for linear in linears)
            self._adapters[cell] = sum(ranks.get(one.name, 0) * (one.inputs + one.outputs) for one in linears)
        #: The gradient of a tied table comes from the output layer first, and again from the input.
        self.tied = bool(config.get("tie_word_embeddings")) and kind == "causal"

    @property
    def trained(self) -> int:
        """Parameters with gradients: own tensors, adapters and the new head."""
        return sum(self.own.values()) + sum(self._adapters.values()) + self.new_head

    def made_at(self, cell: str) -> int:
        """Return the bytes of gradients that appear when the backward pass visits a submodule."""
        own = FP32 * (self.own.get(cell, 0) + self._adapters.get(cell, 0))
        if self.tied and cell in ("embed", "head"):
            return own + FP32 * self.own["embed"] if cell == "head" else 0
        return own

    def again_at(self, cell: str) -> int:
        """Return the bytes of a gradient that is made a second time there, and of its sum with the first."""
        return 2 * FP32 * self.own["embed"] if self.tied and cell == "embed" else 0

    def weights(self, *, four_bit: bool) -> int:
        """Return the bytes of all weights, adapters and the new head included; in 4 bits only layers' linears are."""
        rest = FP32 * (self.total + sum(self._adapters.values()) + self._whole_head)
        return rest - FP32 * self._linears + math.ceil(NF4_BYTES * self._linears) if four_bit else rest


def _highest(passed: Sequence[Stage], counts: _Counts, *, checkpointing: bool, stream: bool = False) -> int:
    """Return the most bytes of activations, gradients and temporaries at any moment of a forward and backward pass.

    `stream`: gradients are not kept. On the way back half of a submodule's widest moment is taken to come on top:
    what it kept goes as the gradients of its inner tensors come.
    """
    high = max((stage.work for stage in passed if not stage.live), default=0)  # on the way up, nothing is kept yet
    kept = _checkpointed(passed) if checkpointing else [stage.kept for stage in passed]
    layers = [stage.cell.partition(".")[2] for stage in passed]
    again: dict[str, int] = {}
    for stage, layer in zip(passed, layers, strict=True):
        again[layer] = again.get(layer, 0) + stage.kept
    held, gradients = sum(kept), FP32 * counts.new_head
    for stage, own, layer in reversed(list(zip(passed, kept, layers, strict=True))):
        if stage.live:
            repeated = again[layer] if checkpointing and layer else 0
            made = counts.made_at(stage.cell)
            high = max(high, held + repeated + gradients + made + counts.again_at(stage.cell) + stage.work // 2)
            gradients += 0 if stream else made
        held -= own
    return high


def _checkpointed(passed: Sequence[Stage]) -> list[int]:
    """Return what every submodule keeps where layers keep their input alone."""
    return [
        stage.kept if "." not in stage.cell else stage.input * (stage.live and stage.cell.startswith("attn"))
        for stage in passed
    ]
