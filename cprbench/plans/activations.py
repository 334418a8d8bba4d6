"""What a forward pass leaves in memory for its backward pass, from a model's config. Imports no torch; modelled.

Written down operation by operation, in the order in which `flops` walks a model: nothing below the lowest trained
tensor, the input of a linear where its weight or an adapter trains, and of norms, activation functions, dropout and
attention what their own derivatives read. A tensor that several operations read is kept once. Sources: the modules of
transformers 5, the adapters of peft and the derivative formulas of torch 2; tests compare with what autograd saves
in live models. Indices, row statistics of the loss and rotary tables are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cprbench.errors import ModelError
from cprbench.meters.flops import FAMILIES, Kind, Linear, Own, Trained, has_norm, has_tensor, plan_of, ranks_in

FP32, BF16 = 4, 2
#: Activation functions that are one operation and keep one tensor; composites keep one per step of their formula.
_FUSED = ("gelu", "gelu_pytorch_tanh", "relu", "silu", "swish")
_COMPOSITE_KEEPS = 4
#: Where configs say how much is dropped: behind linears, and of attention's probabilities.
_DROPOUT = ("hidden_dropout_prob", "dropout", "resid_pdrop")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
_ACTIVATION = ("hidden_activation", "hidden_act", "activation", "activation_function")


@dataclass(frozen=True)
class Step:
    """A batch and how it runs. `scored`: rows that enter the output layer. `drops`: trained modules use dropout."""

    batch: int
    length: int  # tokens per sequence, padding included
    scored: int
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: str = "sdpa"
    on_gpu: bool = False  # on a CPU, attention with dropout is plain mathematics, and masks are of floats
    drops: bool = True
    adapter_dropout: bool = False
    four_bit: bool = False  # qlora: layers' linears are unpacked for every product and give what they were given

    @property
    def width(self) -> int:
        """Bytes of a number that linears and attention compute with."""
        return BF16 if self.precision == "bf16" else FP32

    @property
    def result(self) -> int:
        """Bytes of a number that linears give."""
        return FP32 if self.four_bit else self.width


@dataclass(frozen=True)
class Stage:
    """One submodule of a pass, in bytes. `kept`: what it leaves for the backward pass; `work`: its widest moment, a
    rough estimate; `input`: the hidden states that enter it; `live`: the backward pass visits it.
    """

    cell: str
    kept: int
    work: int
    input: int
    live: bool


@dataclass
class _Bytes:
    """Bytes per position, per pair of positions, per row of the output layer, and of weights cast to 16 bits."""

    position: float = 0
    pair: float = 0
    row: float = 0
    fixed: float = 0

    def of(self, step: Step) -> int:
        positions, pairs = step.batch * step.length, step.batch * step.length**2
        return round(self.position * positions + self.pair * pairs + self.row * step.scored + self.fixed)


def stages(config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, step: Step) -> list[Stage]:
    """Return the submodules of a pass in execution order with what each keeps.

    `labels`: outputs of an encoder's new head. Raises ModelError for an architecture that is not known.
    """
    return list(_Walk(config, kind, labels, trained, step).stages())


def saved_bytes(config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, step: Step) -> int:
    """Return the bytes that autograd keeps at the end of a forward pass, weights excluded."""
    return sum(stage.kept for stage in stages(config, kind, labels, trained, step))


class _Walk:
    """One walk through a model; `live`: the hidden states have gradients at this place."""

    def __init__(self, config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, step: Step) -> None:
        self._plan = plan_of(config, kind, labels)
        family = FAMILIES[config["model_type"]]
        self._heads: int = config[family.keys[2]]
        self._hidden = self._plan.attn[-1].outputs
        self._kv = self._plan.attn[1].outputs if len(self._plan.attn) == 4 else self._plan.width
        self._trained, self._step, self._config = trained, step, config
        self._rms = config["model_type"] in ("gemma", "llama", "mistral", "qwen2", "qwen3")
        self._p, self._p_attention = _dropped(config, _DROPOUT), _dropped(config, _ATTENTION_DROPOUT)
        self._acts = 1 if _first(config, _ACTIVATION, "gelu") in _FUSED else _COMPOSITE_KEEPS
        self._own: dict[str, Own] = dict(trained.tensors or {})
        if trained.tensors is None and trained.lora is None:
            self._own = dict.fromkeys(trained.cells)
        self.live = False

    def stages(self) -> Iterator[Stage]:
        """Yield every submodule from the input upwards."""
        yield self._embed()
        for cell, linears in self._plan.walk():
            part = self._own.get(cell, ())
            ranks = ranks_in(cell, self._trained.lora or {}) if cell in self._trained.cells else {}
            one = self._attention if cell.startswith("attn") else self._feed_forward
            kept = one(linears, part, ranks)
            yield self._stage(cell, kept, self._work(cell.startswith("attn")))
        yield self._output()

    def _stage(self, cell: str, kept: _Bytes, work: _Bytes) -> Stage:
        step = self._step
        entering = FP32 * self._hidden * step.batch * step.length
        return Stage(cell, kept.of(step), work.of(step), entering, self.live)

    # --- submodules ---------------------------------------------------------------------------------

    def _embed(self) -> Stage:
        part = self._own.get("embed", ())
        self.live = part is None or bool(part)
        kept = _Bytes()
        if self.live and not self._rms:  # GPT-2 drops, BERT and its kin normalise and drop
            if self._plan.norm_first is False:
                kept.position += self._norm_keeps(trains=has_norm(part))
            kept.position += self._mask(self.live)
        return self._stage("embed", kept, _Bytes(position=2 * FP32 * self._hidden))

    def _attention(self, linears: tuple[Linear, ...], part: Own, ranks: Mapping[str, int]) -> _Bytes:
        kept, step, width = _Bytes(), self._step, self._plan.width
        drops = self._drops(part, ranks) and self._p_attention > 0
        reads = self._enter(kept, part)
        made = self._reading(kept, linears[:-1], reads, part, ranks)
        out, context = linears[-1], 0
        if any(made):
            if self._config["model_type"] == "qwen3":
                kept.position += self._head_norms(part)
            context = self._products(kept, drops)
        weighs = self._weighs(out, part, ranks)
        copies = bool(ranks.get(out.name)) and (step.width == BF16 or step.adapter_dropout)
        if weighs and not context and not copies:
            kept.position += step.width * width
        self._linear(kept, out, any(made), part, ranks, own=bool(ranks.get(out.name)))
        grad = any(made) or weighs or has_tensor(part, *out.tensors)
        if self._config["model_type"] != "distilbert":
            kept.position += self._mask(grad and self._drops(part, ranks))
        self._leave(kept, grad, part)
        return kept

    def _products(self, kept: _Bytes, drops: bool) -> int:
        """Enter what attention keeps; return the bytes of its result that it keeps itself."""
        step, width = self._step, self._plan.width
        if step.attention == "eager":
            kept.position += step.width * 3 * width
            kept.pair += self._heads * (FP32 + (BF16 if step.width == BF16 else 0))
            if drops:
                kept.pair += self._heads * (step.width + (1 if step.on_gpu else step.width))
            return 0
        if drops and not step.on_gpu:  # torch's plain form: always in float32
            kept.position += FP32 * 3 * width
            kept.pair += FP32 * 3 * self._heads
            return 0
        kept.position += step.width * 4 * width + FP32 * self._heads
        kept.pair += step.width  # the mask, made anew in every layer
        return step.width * width

    def _head_norms(self, part: Own) -> float:
        """Return what Qwen3's norms of queries and keys keep: float32 copies, and their results where they train."""
        wide, trains = self._plan.width + self._kv, has_tensor(part, "q_norm.weight", "k_norm.weight")
        size = self._plan.width // self._heads
        return FP32 * wide + FP32 * wide / size + (self._step.width * wide if trains else 0)

    def _feed_forward(self, linears: tuple[Linear, ...], part: Own, ranks: Mapping[str, int]) -> _Bytes:
        kept, step, feed = _Bytes(), self._step, linears[0].outputs
        reads = self._enter(kept, part)
        made = self._reading(kept, linears[:-1], reads, part, ranks)
        if len(linears) == 3:  # act(gate) * up
            kept.position += step.result * feed * (2 * made[0] + made[1])
        elif made[0]:
            kept.position += step.result * feed * self._acts
        down = linears[-1]
        if self._weighs(down, part, ranks):
            kept.position += step.width * feed
        self._linear(kept, down, any(made), part, ranks, own=False)
        grad = any(made) or self._weighs(down, part, ranks) or has_tensor(part, *down.tensors)
        kept.position += self._mask(grad and self._drops(part, ranks))
        self._leave(kept, grad, part)
        return kept

    def _output(self) -> Stage:
        """Return the final norm, the pooler and the output layer."""
        kept, step, part = _Bytes(), self._step, self._own.get("head", ())
        work = _Bytes()
        if self._plan.norm_first:
            kept.position += self._norm_keeps(trains=has_norm(part))
            self.live = self.live or has_norm(part)
        for cell, linear in self._plan.rows:
            own: Own = None if cell == "new" and self._trained.new_head else self._own.get(cell, ())
            weight = has_tensor(own, linear.tensors[0])
            if weight and linear.inputs == linear.outputs and self._views_first_token():
                kept.position += FP32 * self._hidden
            kept.row += step.width * linear.inputs * weight
            if step.width == BF16 and self.live:
                kept.fixed += BF16 * linear.inputs * linear.outputs
            self.live = self.live or weight
            work.row += 3 * FP32 * linear.outputs
        kept.row += FP32 * self._plan.rows[-1][1].outputs * self.live
        work.position = 2 * FP32 * self._hidden
        return self._stage("head", kept, work)

    def _views_first_token(self) -> bool:
        """Return whether a pooler reads the first token's states as a view of all of them, which keeps all."""
        drops_first = self._config["model_type"] in ("camembert", "roberta", "xlm-roberta") and self._p > 0
        return self._step.width == FP32 and not (drops_first and self._step.drops)

    def _work(self, attention: bool) -> _Bytes:
        """Return what the widest moment of a submodule holds: its inner tensors or their gradients, and one weight."""
        step, plan = self._step, self._plan
        linears = plan.attn if attention else plan.ffn
        largest = max(linear.inputs * linear.outputs for linear in linears)
        weight = largest * (step.width if step.width == BF16 or step.four_bit else 0)
        stream = 4 * FP32 * self._hidden
        if not attention:
            feed = plan.ffn[0].outputs
            return _Bytes(position=stream + step.result * feed * max(len(linears), self._acts), fixed=weight)
        plain = step.attention == "eager" or (step.drops and self._p_attention > 0 and not step.on_gpu)
        pair = 2 * FP32 * self._heads if plain else FP32
        return _Bytes(position=stream + 4 * step.width * plan.width, pair=pair, fixed=weight)

    # --- operations ---------------------------------------------------------------------------------

    def _enter(self, kept: _Bytes, part: Own) -> bool:
        """Enter the norm of a submodule that normalises its input; return whether its linears' input has gradients."""
        if not self._plan.norm_first:
            return self.live
        kept.position += self._norm_keeps(trains=has_norm(part))
        return self.live or has_norm(part)

    def _leave(self, kept: _Bytes, grad: bool, part: Own) -> None:
        """Enter the norm of a submodule that normalises its output, and say whether that has gradients."""
        self.live = self.live or grad
        if not self._plan.norm_first:
            kept.position += self._norm_keeps(trains=has_norm(part))
            self.live = self.live or has_norm(part)

    def _norm_keeps(self, *, trains: bool) -> float:
        """Return what a norm keeps: its input with statistics, and, in its plain form, what its weight multiplies."""
        if not self._rms:
            return FP32 * self._hidden + 2 * FP32 if self.live or trains else 0
        return (FP32 * self._hidden + FP32) * self.live + FP32 * self._hidden * trains

    def _reading(
        self, kept: _Bytes, linears: tuple[Linear, ...], reads: bool, part: Own, ranks: Mapping[str, int]
    ) -> list[bool]:
        """Enter linears that read one input; return which of their outputs have gradients."""
        made, step = [], self._step
        weighs = [self._weighs(linear, part, ranks) for linear in linears]
        if any(weighs) and step.width == FP32 and not step.adapter_dropout:
            kept.position += FP32 * linears[0].inputs
        for linear, weighed in zip(linears, weighs, strict=True):
            # Under autocast every linear casts for itself, and autograd keeps each copy.
            self._linear(kept, linear, reads, part, ranks, own=weighed)
            made.append(reads or weighed or has_tensor(part, *linear.tensors))
        return made

    def _linear(
        self, kept: _Bytes, linear: Linear, reads: bool, part: Own, ranks: Mapping[str, int], *, own: bool
    ) -> None:
        """Enter one linear: its `own` copy of its input, where it makes one, its weight's in 16 bits, its adapter."""
        step, rank = self._step, ranks.get(linear.name, 0)
        if own and (step.width == BF16 or (rank and step.adapter_dropout)):
            kept.position += step.width * linear.inputs
        if rank:
            kept.position += step.width * rank
            if step.adapter_dropout and reads:  # before the adapter, in float32
                kept.position += linear.inputs * (1 if step.on_gpu else FP32)
        if step.width == BF16:
            adapter = rank * (linear.inputs + linear.outputs)
            frozen = 0 if step.four_bit or not reads else linear.inputs * linear.outputs
            kept.fixed += BF16 * (adapter + frozen)

    def _weighs(self, linear: Linear, part: Own, ranks: Mapping[str, int]) -> bool:
        """Return whether a linear's weight or adapter trains, so that its input is kept."""
        return ranks.get(linear.name, 0) > 0 or has_tensor(part, linear.tensors[0])

    def _drops(self, part: Own, ranks: Mapping[str, int]) -> bool:
        """Return whether a submodule is in train mode: it holds something that trains."""
        return self._step.drops and (part is None or bool(part) or bool(ranks))

    def _mask(self, drops: bool) -> float:
        """Return what dropout behind a linear keeps."""
        if not (drops and self._step.drops and self._p > 0):
            return 0
        return self._hidden * (1 if self._step.on_gpu else self._step.width)


def _dropped(config: Mapping[str, Any], keys: tuple[str, ...]) -> float:
    """Return the share that is dropped. Raises ModelError for a setting that is none."""
    value = _first(config, keys, 0.0)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        key = next(key for key in keys if config.get(key) is not None)
        raise ModelError(
            f"model_type {config['model_type']!r}: {key} is {value!r:.80} in its config; it is a share of 0 to 1. Use "
            "the config.json that came with the model."
        )
    return float(value)


def _first(config: Mapping[str, Any], keys: tuple[str, ...], default: Any) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), default)
