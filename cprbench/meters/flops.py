"""FLOPs of the passes that a run executed, counted from shapes and sizes. Imports no torch.

A product of an (m x k) and a (k x n) matrix is 2*m*n*k FLOPs, and only matrix products count: not elementwise
work, norms, softmax, rotary angles, embedding look-ups and their scattered gradients, nor the optimizer. What
counts is what autograd runs: a weight's gradient where it trains, an input's gradient where something before
it in execution order has gradients, and below the lowest trained tensor no backward at all. Attention counts
as plain mathematics (every pair of padded positions, key-value heads repeated, nothing computed twice),
whichever kernel runs, so that a run counts the same on every machine. Padding is work done: it is part of
the total and is shown apart. Sources: the modules of transformers 5, and torch's operator-level FLOP counter,
with which the tests compare.

    work.jsonl -> Pass;  config -> sizes -> plan of linears;  plan x trained -> rates;  rates x Pass -> Flops
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from cprbench.errors import ModelError, SpecError, StoreError, did_you_mean
from cprbench.schema import canonical_json

Kind = Literal["encoder", "causal"]
Trains = Literal["nothing", "head", "all", "method", "activations"]


@dataclass(frozen=True)
class Pass:
    """One line of work.jsonl: a batch that went through the model, `times` times with the same shape.

    `trains` says which tensors had gradients: "nothing", "head" (the new head), "all", "method" (what the method
    trains), or "activations" (what the embeddings give and all that follows from it, but no weight: a probe).
    Adapters are in the model in "method" passes and in no other, so a pass under no_grad through a model with
    adapters is backward=False with trains="method". A forward that is repeated by gradient checkpointing is a
    pass of its own with backward=False and `recompute`, from the first checkpointed layer to the last: torch stops
    each layer's repetition at the last tensor that its backward needs.

    `first_layer`, `last_layer`: the pass ran these layers only, the last one excluded; without a last one it went on
    to the output layer. A pass that starts above layer 0 read states that an earlier one had kept.
    """

    phase: str
    attempt: int
    backward: bool  # False: forward only, under no_grad
    trains: Trains
    batch: int  # sequences
    length: int  # tokens per sequence, padding included
    tokens: int  # real tokens, summed over the batch
    scored: int  # rows that enter the output layer: the batch (encoder), positions with logits (causal)
    times: int = 1
    squared: int | None = None  # sum over sequences of (real tokens)^2; None: taken as tokens^2 / batch
    extra_flops: int = 0  # of matrix products beside the model's own, as counted by the code that made them
    first_layer: int = 0
    last_layer: int | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("attempt", "batch", "length", "tokens", "scored", "times", "extra_flops", "first_layer"):
            value, least = getattr(self, name), 0 if name in ("tokens", "scored", "extra_flops", "first_layer") else 1
            if type(value) is not int or value < least:
                raise SpecError(f"pass: {name} is {value!r}; it is a whole number of at least {least}.")
        if self.trains not in get_args(Trains):
            raise SpecError(f"pass: trains is {self.trains!r}; it is one of {', '.join(get_args(Trains))}.")
        if type(self.backward) is not bool or type(self.recompute) is not bool or not isinstance(self.phase, str):
            raise SpecError(f"pass: phase {self.phase!r} is a name and backward {self.backward!r} true or false.")
        if self.tokens > self.batch * self.length:
            raise SpecError(f"pass: {self.tokens} real tokens do not fit {self.batch} x {self.length} positions.")
        last = self.last_layer
        if last is not None and not (type(last) is int and last >= self.first_layer and not self.backward):
            raise SpecError(f"pass: last_layer is {last!r}; it ends a forward pass that began at {self.first_layer}.")
        low, high = -(-(self.tokens**2) // self.batch), self.tokens * self.length
        if self.squared is not None and not (type(self.squared) is int and low <= self.squared <= high):
            raise SpecError(f"pass: squared is {self.squared!r}; these shapes allow {low} to {high}.")

    def line(self) -> str:
        """Return the line of work.jsonl."""
        unsaid = {"squared": None, "extra_flops": 0, "first_layer": 0, "last_layer": None, "recompute": False}
        return canonical_json({name: v for name, v in asdict(self).items() if unsaid.get(name, ...) != v})

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Pass:
        """Return the pass in a decoded line of work.jsonl. Raises StoreError when it is not one."""
        try:
            return cls(**data)
        except (TypeError, SpecError) as error:
            raise StoreError(f"work.jsonl: {data!r:.120} is not a pass ({error}).") from None


@dataclass(frozen=True)
class Trained:
    """What a method trains, in cells of the partition (DESIGN section 1).

    Without `lora`, every weight, norm and bias of `cells` has gradients; so has the new task head where
    `new_head`. With `lora`, these cells' own tensors stay frozen, and each linear that `lora` names has an
    adapter of that rank in every layer whose cell is in `cells`. Names are a linear's dotted name inside its
    layer, "attention.self.query", "mlp.gate_proj", "attn.c_attn", or that of one layer alone: "ffn.3/mlp.gate_proj".

    `tensors` says exactly which own tensors train, by cell, and then no others do, with `lora` or without: names
    of parameters, inside their layer ("attention.self.query.bias") or whole as the live model has them.
    """

    cells: frozenset[str]
    new_head: bool
    lora: Mapping[str, int] | None = None
    tensors: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Flops:
    """Matrix-multiplication FLOPs; `padding` is the part of `total` that padding positions cost."""

    total: int = 0
    padding: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.total + other.total, self.padding + other.padding)


@dataclass(frozen=True)
class _Family:
    """How model types of one build name their sizes, and the linears inside a layer in execution order."""

    kind: Kind
    keys: tuple[str, ...]  # hidden size, layers, heads, feed-forward size, then what else would be guessed
    attn: tuple[str, ...]  # the linears that read the cell's input, then the one that writes its output
    ffn: tuple[str, ...]
    norm_first: bool = False  # each cell normalises its input, not its output
    pooler: bool = False  # a pooler of the model (cell "head") stands before the new classifier
    table: str = "embed_tokens"  # the input table, which a tied lm_head multiplies with
    dropout: str = ""  # the config's name of the dropout that a layer ends with


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_LM = ("vocab_size", "tie_word_embeddings")
#: Every config key that the count reads; a record stores these in spec.model.config.
KEPT_CONFIG_KEYS = (
    *("model_type", *_SIZES, *_LM, "num_key_value_heads", "head_dim", "add_cross_attention", "resid_pdrop"),
    *("n_embd", "n_layer", "n_head", "n_inner", "dim", "n_layers", "n_heads", "hidden_dim"),
)
_NULLABLE = frozenset({"head_dim", "n_inner", "num_key_value_heads"})  # None: follows from other sizes

_BERT_ATTN = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_BERT = _Family("encoder", _SIZES, _BERT_ATTN, ("intermediate.dense", "output.dense"), pooler=True)
_ROBERTA = replace(_BERT, pooler=False)
_DISTILBERT_ATTN = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")
_DISTILBERT_KEYS = ("dim", "n_layers", "n_heads", "hidden_dim")
_LLAMA_ATTN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_LLAMA_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_LLAMA_KEYS = (*_SIZES, *_LM, "num_key_value_heads")
_LLAMA = _Family("causal", _LLAMA_KEYS, _LLAMA_ATTN, _LLAMA_FFN, norm_first=True)
_GPT2_ATTN, _GPT2_FFN = ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")
_GPT2_KEYS = ("n_embd", "n_layer", "n_head", "n_inner", *_LM)
FAMILIES = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _Family("encoder", _DISTILBERT_KEYS, _DISTILBERT_ATTN, ("ffn.lin1", "ffn.lin2")),
    "gemma": replace(_LLAMA, keys=(*_LLAMA_KEYS, "head_dim")),
    "gpt2": _Family("causal", _GPT2_KEYS, _GPT2_ATTN, _GPT2_FFN, True, table="wte", dropout="resid_pdrop"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, keys=(*_LLAMA_KEYS, "head_dim")),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def supported(config: Mapping[str, Any]) -> str | None:
    """Return None when the FLOPs of this architecture can be counted, else why not."""
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return f"model_type {name!r} has no FLOP count (counted: {', '.join(FAMILIES)})"
    for key in family.keys:
        value = config.get(key)
        fits = isinstance(value, bool) if key == "tie_word_embeddings" else type(value) is int and value > 0
        if not fits and not (key in _NULLABLE and key in config and value is None):
            return f"model_type {name!r}: {key} is {value!r} in its config, so its FLOPs cannot be counted"
    if config.get("add_cross_attention"):
        return f"model_type {name!r}: cross-attention has no FLOP count"
    return None


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model's config that the count reads."""
    return {key: config[key] for key in KEPT_CONFIG_KEYS if key in config}


@dataclass(frozen=True)
class Linear:
    name: str  # inside its layer
    inputs: int
    outputs: int

    @property
    def tensors(self) -> tuple[str, str, str]:
        """Its weight, its bias and the norm on its output: Qwen3 has one on queries and one on keys."""
        return f"{self.name}.weight", f"{self.name}.bias", f"{self.name.replace('_proj', '_norm')}.weight"


@dataclass(frozen=True)
class _Plan:
    """A model's matrix products in execution order: `layers` times attn and ffn, then `rows`."""

    layers: int
    norm_first: bool
    drops: bool  # a layer ends with dropout, where what it drops out trains
    width: int  # heads x head size: what a pair of positions multiplies, once for scores, once for context
    attn: tuple[Linear, ...]  # query, key and value (or all in one), then output
    ffn: tuple[Linear, ...]
    rows: tuple[tuple[str, Linear], ...]  # pooler and classifier, or lm_head, each with the cell of its weight

    def walk(self) -> Iterator[tuple[str, tuple[Linear, ...]]]:
        """Yield (cell, its linears) in execution order."""
        for layer in range(self.layers):
            yield f"attn.{layer}", self.attn
            yield f"ffn.{layer}", self.ffn

    def cells(self) -> frozenset[str]:
        return frozenset({"embed", "head", *(cell for cell, _ in self.walk())})


def plan_of(config: Mapping[str, Any], kind: Kind, labels: int | None) -> _Plan:
    why = supported(config)
    if why is not None:
        raise ModelError(f"{why}.")
    family = FAMILIES[config["model_type"]]
    if family.kind != kind:
        raise ModelError(f"model_type {config['model_type']!r} is counted as {family.kind}, not as {kind}.")
    if kind == "encoder" and (labels is None or labels < 1):
        raise SpecError(f"labels is {labels!r}: an encoder's new classifier has at least one output.")
    hidden, layers, heads, feed = (config[key] for key in family.keys[:4])
    feed, head_size = feed or 4 * hidden, config.get("head_dim") or hidden // heads
    width, kv = heads * head_size, (config.get("num_key_value_heads") or heads) * head_size
    reads = (width, kv, kv) if len(family.attn) == 4 else (width + 2 * kv,)
    attn = [Linear(name, hidden, outputs) for name, outputs in zip(family.attn[:-1], reads, strict=True)]
    attn.append(Linear(family.attn[-1], width, hidden))
    ffn = [*(Linear(name, hidden, feed) for name in family.ffn[:-1]), Linear(family.ffn[-1], feed, hidden)]
    if kind == "causal":
        tied = config["tie_word_embeddings"]
        lm_head = Linear(family.table if tied else "lm_head", hidden, config["vocab_size"])
        rows = [("embed" if tied else "head", lm_head)]
    else:
        pooler = Linear("pooler.dense", hidden, hidden)
        rows = [("head" if family.pooler else "new", pooler), ("new", Linear("classifier", hidden, labels or 0))]
    drops = bool(family.dropout and config.get(family.dropout, 0.1))
    return _Plan(layers, family.norm_first, drops, width, tuple(attn), tuple(ffn), tuple(rows))


#: A norm's tensor, in a cell's names: "ln_1.bias", "output.LayerNorm.weight", but not Qwen3's "q_norm.weight".
_NORM = re.compile(r"(?<!\bq_)(?<!\bk_)norm\.(weight|bias)$|\bln_\w\.(weight|bias)$", re.IGNORECASE)


def pass_flops(config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, p: Pass) -> Flops:
    """Return the FLOPs of one line of work.jsonl. Raises what `each` raises."""
    return next(each(config, kind, labels, trained, [p]))


def count(
    config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, passes: Iterable[Pass]
) -> dict[tuple[str, int], Flops]:
    """Return the FLOPs of all passes by (phase, attempt). Raises what `each` raises."""
    passes, found = list(passes), dict[tuple[str, int], Flops]()
    for p, done in zip(passes, each(config, kind, labels, trained, passes), strict=True):
        found[p.phase, p.attempt] = found.get((p.phase, p.attempt), Flops()) + done
    return found


def each(
    config: Mapping[str, Any], kind: Kind, labels: int | None, trained: Trained, passes: Iterable[Pass]
) -> Iterator[Flops]:
    """Yield the FLOPs of every line of work.jsonl, its `times` included.

    `config` is the model's config as a dict, or its `sizes`; `labels` the outputs of an encoder's classifier.
    Raises ModelError for an architecture that cannot be counted, and SpecError for cells or linears that the
    model does not have and for a backward pass in which nothing has gradients.
    """
    plan = plan_of(config, kind, labels)
    _check(plan, trained)
    rates: dict[tuple[Any, ...], _Rates] = {}
    for p in passes:
        key = (p.trains, p.backward, p.first_layer, p.last_layer, p.recompute)
        if key not in rates:
            rates[key] = _rates(plan, trained, p)
        yield rates[key].of(p)


def _check(plan: _Plan, trained: Trained) -> None:
    """Raise SpecError for cells, linears and tensors that the model does not have."""
    own = trained.tensors or {}
    for cell in sorted({*trained.cells, *own} - plan.cells()):
        raise SpecError(f"the model has no submodule {cell!r}. {did_you_mean(cell, plan.cells())}")
    linears = {linear.name for linear in (*plan.attn, *plan.ffn)}
    inside = dict(plan.walk())
    for name, rank in (trained.lora or {}).items():
        cell, _, linear = name.rpartition("/")
        if linear not in linears or rank < 1 or (cell and linear not in [own.name for own in inside.get(cell, ())]):
            raise SpecError(f"no adapter of rank {rank} fits {name!r}. {did_you_mean(linear, linears)}")
    inside |= {cell: (linear,) for cell, linear in plan.rows}
    for cell, names in own.items():
        known = [tensor for linear in inside.get(cell, ()) for tensor in linear.tensors]
        for name in names:
            if cell != "embed" and not has_tensor([name], *known) and not has_norm([name]):
                raise SpecError(f"submodule {cell!r} has no tensor {name!r}. {did_you_mean(name, known)}")


@dataclass(frozen=True)
class _Rates:
    """FLOPs per position, per pair of positions of one sequence, and per row of the output layer."""

    position: int
    pair: int
    row: int

    def of(self, p: Pass) -> Flops:
        positions, pairs = p.batch * p.length, p.batch * p.length**2
        real_pairs = -(-(p.tokens**2) // p.batch) if p.squared is None else p.squared
        padding = self.position * (positions - p.tokens) + self.pair * (pairs - real_pairs)
        total = self.position * positions + self.pair * pairs + self.row * p.scored + p.extra_flops
        return Flops(p.times * total, p.times * padding)


#: The tensors of a cell that train, by name; None: all of them.
Own = Sequence[str] | None


def _rates(plan: _Plan, trained: Trained, p: Pass) -> _Rates:
    """Walk the layers of a pass in execution order; `live`: the hidden states have gradients at this place."""
    trains, backward, last = p.trains, p.backward, plan.layers if p.last_layer is None else p.last_layer
    if p.first_layer > plan.layers or last > plan.layers:
        raise SpecError(f"a pass from layer {p.first_layer} to {last} does not fit a model of {plan.layers} layers.")
    method = trains == "method"
    ranks = trained.lora or {} if method else {}
    own: dict[str, Own] = {}
    if method and trained.tensors is not None:
        own.update(trained.tensors)
    elif trains == "all" or (method and trained.lora is None):
        own.update(dict.fromkeys(plan.cells() if trains == "all" else trained.cells))
    if trained.new_head if method else trains in ("head", "all"):
        own["new"] = None
    table = own.get("embed", ())
    live = p.first_layer == 0 and (trains == "activations" or table is None or bool(table))
    position = pair = row = 0
    for cell, linears in plan.walk():
        if not p.first_layer <= int(cell.partition(".")[2]) < last:
            continue
        part, adapters = own.get(cell, ()), ranks_in(cell, ranks) if cell in trained.cells else {}
        reads = live or (plan.norm_first and has_norm(part))
        made = []  # which outputs of the reading linears have gradients
        for linear in linears[:-1]:
            cost, grad = _product(linear, reads, part, adapters.get(linear.name, 0), backward)
            position += cost
            made.append(grad)
        if linears is plan.attn:
            query, key, value = made if len(made) == 3 else made * 3
            pair += 2 * plan.width * (2 + backward * (query + key + (query or key) + value))
        cost, grad = _product(linears[-1], any(made), part, adapters.get(linears[-1].name, 0), backward)
        if p.recompute and plan.norm_first and linears is plan.ffn and not (plan.drops and (part != () or adapters)):
            # What a layer ends with is not repeated: its backward needs its input alone. That is lora_B, or the linear.
            cost = cost - 2 * linears[-1].outputs * rank if (rank := adapters.get(linears[-1].name, 0)) else 0
        position += cost
        live = live or grad or (not plan.norm_first and has_norm(part))
    live = live or (plan.norm_first and has_norm(own.get("head", ())))  # the final norm
    for cell, linear in plan.rows if p.last_layer is None else ():
        cost, live = _product(linear, live, own.get(cell, ()), 0, backward)
        row += cost
    if backward and not live:
        raise SpecError(f"a backward pass in which nothing has gradients cannot have run (trains={trains!r}).")
    return _Rates(position, pair, row)


def ranks_in(cell: str, ranks: Mapping[str, int]) -> dict[str, int]:
    """Return linear -> rank in one cell: its own where it has one, else that of all cells."""
    own = {name.rpartition("/")[2]: rank for name, rank in ranks.items() if name.startswith(f"{cell}/")}
    return {name: rank for name, rank in ranks.items() if "/" not in name} | own


def _product(linear: Linear, reads: bool, part: Own, rank: int, backward: bool) -> tuple[int, bool]:
    """Return the FLOPs per row of a linear with its adapter, and whether its output has gradients.

    `reads`: its input has gradients; `part`: what trains in its cell; `rank`: of its adapter, 0 without one.
    """
    once, down, up = 2 * linear.inputs * linear.outputs, 2 * linear.inputs * rank, 2 * rank * linear.outputs
    weights = has_tensor(part, linear.tensors[0])
    cost = once + down + up
    if backward:
        cost += once * (reads + weights) + down * (reads + 1) + up * 2
    return cost, reads or rank > 0 or has_tensor(part, *linear.tensors)


def has_tensor(part: Own, *ends: str) -> bool:
    return part is None or any(f".{name}".endswith(f".{end}") for name in part for end in ends)


def has_norm(part: Own) -> bool:
    """Return whether a norm over the hidden states trains."""
    return part is None or any(_NORM.search(name) for name in part)
